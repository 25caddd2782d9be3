"""Whether the engine serves, and how well: for Python clients and for the page."""

from frontend.server.generation import TextEngine
from frontend.wire import Health


def health(engine: TextEngine) -> Health:
    """As it is known here: nobody is asked."""
    capacity, config = engine.capacity, engine.config
    workers = 0 if engine.router.is_stalled else capacity.workers
    draining = engine.router.draining
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
