"""What the scheduler tells of itself when asked."""

from bisect import bisect_left
from collections.abc import Mapping

from protocol.messages import STEP_SIZES, EngineStats, WorkerStats
from scheduler_proc.lane import Lane


class StepSizes:
    """How many tokens the steps had."""

    def __init__(self) -> None:
        self.counts = [0] * (len(STEP_SIZES) + 1)
        self.tokens = 0

    def count(self, tokens: int) -> None:
        """One more step, of so many tokens."""
        self.counts[bisect_left(STEP_SIZES, tokens)] += 1
        self.tokens += tokens


def engine_stats(
    query_id: int,
    lanes: Mapping[int, Lane],
    num_workers: int,
    num_waiting: int,
    counters: Mapping[str, int],
    sizes: StepSizes,
    now_ns: int,
) -> EngineStats:
    """The answer to GetStats: the queue, every worker that should be there, and what was counted since the start."""
    return EngineStats(
        query_id=query_id,
        waiting=num_waiting,
        workers=tuple(_worker_stats(index, lanes.get(index)) for index in range(num_workers)),
        counters=dict(counters),
        now_ns=now_ns,
        steps_by_size=tuple(sizes.counts),
        step_tokens=sizes.tokens,
    )


def _worker_stats(index: int, lane: Lane | None) -> WorkerStats:
    if lane is None:
        return WorkerStats(worker=index, alive=False, running=0, blocks=0, blocks_free=0, steps=0, in_flight=0)
    return WorkerStats(
        worker=index,
        alive=True,
        running=lane.num_running,
        blocks=lane.pool.num_blocks,
        blocks_free=lane.pool.num_free,
        steps=lane.ledger.next_step,
        in_flight=len(lane.in_flight),
        device_busy_ns=lane.device_busy_ns,
    )
