"""What the scheduler tells of itself when asked."""

from bisect import bisect_left
from collections.abc import Mapping

from protocol.messages import STEP_SIZES, STEP_STAGES, EngineStats, ModelRunnerOutput, WorkerStats
from scheduler_proc.in_flight import InFlightStep
from scheduler_proc.lane import Lane


class StepSums:
    """What the steps come to: how many tokens they had, and how long each stage of the host took."""

    def __init__(self) -> None:
        self.sizes = [0] * (len(STEP_SIZES) + 1)
        self.tokens = 0
        self.stages_ns = [0] * len(STEP_STAGES)

    def count(self, tokens: int, step: InFlightStep, output: ModelRunnerOutput, answered_ns: int) -> None:
        """One more step, of so many tokens, whose last answer was taken in at `answered_ns`."""
        self.sizes[bisect_left(STEP_SIZES, tokens)] += 1
        self.tokens += tokens
        received, prepared, dispatched, _, finished, collected = output.times_ns
        sent = min(step.sent_ns, received)  # the sender looks at the clock behind the send: it may have been interrupted before
        stages = self.stages_ns
        stages[0] += sent - step.scheduled_ns
        stages[1] += received - sent
        stages[2] += prepared - received
        stages[3] += dispatched - prepared
        stages[4] += max(0, collected - finished)  # the end of a step is known from its collection where the device does not say
        stages[5] += answered_ns - collected


def engine_stats(
    query_id: int,
    lanes: Mapping[int, Lane],
    num_workers: int,
    num_waiting: int,
    counters: Mapping[str, int],
    steps: StepSums,
    now_ns: int,
) -> EngineStats:
    """The answer to GetStats: the queue, every worker that should be there, and what was counted since the start."""
    return EngineStats(
        query_id=query_id,
        waiting=num_waiting,
        workers=tuple(_worker_stats(index, lanes.get(index)) for index in range(num_workers)),
        counters=dict(counters),
        now_ns=now_ns,
        steps_by_size=tuple(steps.sizes),
        step_tokens=steps.tokens,
        stages_ns=tuple(steps.stages_ns),
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
