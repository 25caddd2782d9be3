"""What the scheduler tells of itself when asked."""

from collections.abc import Mapping

from protocol.messages import EngineStats, WorkerStats
from scheduler_proc.lane import Lane


def engine_stats(
    query_id: int, lanes: Mapping[int, Lane], num_workers: int, num_waiting: int, counters: Mapping[str, int], now_ns: int
) -> EngineStats:
    """The answer to GetStats: the queue, every worker that should be there, and the counters since the start."""
    workers = tuple(_worker_stats(index, lanes.get(index)) for index in range(num_workers))
    return EngineStats(query_id=query_id, waiting=num_waiting, workers=workers, counters=dict(counters), now_ns=now_ns)


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
