"""What an engine does in a second, from two looks at its counters."""

from dataclasses import dataclass

from protocol.messages import EngineStats, WorkerStats

_SECONDS = 1e-9  # of a nanosecond


@dataclass(frozen=True, slots=True)
class WorkerRates:
    """One worker between two looks."""

    now: WorkerStats
    steps: float  # a second
    idle: float | None  # share of the time in which its device had nothing to run; None: it was replaced meanwhile


@dataclass(frozen=True, slots=True)
class Rates:
    """The engine between two looks; counts as of the second."""

    running: int
    waiting: int
    generated: float  # tokens a second
    prefilled: float  # prompt tokens computed a second
    cached: float | None  # share of prompt tokens that the prefix cache held; None: no prompt began
    workers: tuple[WorkerRates, ...]


def rates(before: EngineStats, after: EngineStats) -> Rates:
    """`before` and `after`: of the same engine, at different times."""
    seconds = max(after.now_ns - before.now_ns, 1) * _SECONDS

    def grown(counter: str) -> int:
        return after.counters.get(counter, 0) - before.counters.get(counter, 0)

    queries = grown("prefix_cache_queries")
    earlier = {worker.worker: worker for worker in before.workers}
    return Rates(
        running=sum(worker.running for worker in after.workers),
        waiting=after.waiting,
        generated=grown("generation_tokens") / seconds,
        prefilled=grown("prefill_tokens") / seconds,
        cached=grown("prefix_cache_hits") / queries if queries else None,
        workers=tuple(_of_worker(earlier.get(worker.worker), worker, seconds) for worker in after.workers),
    )


def _of_worker(before: WorkerStats | None, after: WorkerStats, seconds: float) -> WorkerRates:
    same = before is not None and before.alive and after.alive and before.device_busy_ns <= after.device_busy_ns
    if before is None or not same or after.steps < before.steps:
        return WorkerRates(after, 0.0, None)
    busy = (after.device_busy_ns - before.device_busy_ns) * _SECONDS / seconds
    return WorkerRates(after, (after.steps - before.steps) / seconds, min(1.0, max(0.0, 1.0 - busy)))
