"""What the engine says of itself when a Python client asks."""

import msgspec

from frontend.server.generation import TextEngine
from frontend.wire import Ask, Health, HealthReport, StatsReport, TraceReport


async def report(
    engine: TextEngine, ask: Ask, counters: dict[str, int], *, draining: bool
) -> HealthReport | StatsReport | TraceReport:
    """The answer to a question. `counters`: those of the server, shown beside the scheduler's."""
    match ask.what:
        case "health":
            return HealthReport(ask.request_id, _health(engine, draining=draining))
        case "stats":
            stats = await engine.router.stats()
            return StatsReport(ask.request_id, msgspec.structs.replace(stats, counters=stats.counters | counters))
        case "trace":
            records = await engine.router.trace()
            return TraceReport(ask.request_id, records, engine.router.answered().tobytes())


def _health(engine: TextEngine, *, draining: bool) -> Health:
    capacity, config = engine.capacity, engine.config
    workers = 0 if engine.router.is_stalled else capacity.workers
    return Health(
        status="draining" if draining else "ok" if workers >= config.workers else "degraded" if workers else "recovering",
        workers=workers,
        workers_wanted=config.workers,
        model=config.served_model_names[0],
        device=capacity.device,
        max_model_len=capacity.max_model_len,
        queue_depth=config.queue_depth,
        requests=engine.router.num_requests,
    )
