"""The routes about the engine itself: models, health, readiness, version."""

from importlib.metadata import version

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from frontend.server.api import jobs
from frontend.server.generation import TextEngine


def _answer(fields: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(fields), status, media_type="application/json")


async def models(request: Request) -> Response:
    """GET /v1/models."""
    return _answer({"object": "list", "data": [_card(request, name) for name in _engine(request).config.served_model_names]})


async def model(request: Request) -> Response:
    """GET /v1/models/NAME."""
    return _answer(_card(request, jobs.model_name(_engine(request), request.path_params["name"])))


def _card(request: Request, name: str) -> dict[str, object]:
    engine = _engine(request)
    fields = {"id": name, "object": "model", "created": request.app.state.created, "owned_by": "twodeep"}
    return {**fields, "root": engine.config.served_model_names[0], "max_model_len": engine.capacity.max_model_len}


async def health(request: Request) -> Response:
    """GET /health: 200 while requests are taken and a worker is alive, else 503. Compares clocks, and asks nobody."""
    return _health(_engine(request), must_have_room=False)


async def ready(request: Request) -> Response:
    """GET /ready: 200 while a request would be taken now. So it is 503 too while as many are under way as may be."""
    return _health(_engine(request), must_have_room=True)


def _health(engine: TextEngine, *, must_have_room: bool) -> Response:
    router = engine.router
    wanted, alive = engine.config.workers, 0 if router.is_stalled else engine.capacity.workers
    serves = alive > 0 and not router.draining
    if router.is_stalled:
        status = "the scheduler does not answer"
    elif router.draining:
        status, alive = "draining", 0
    elif serves and must_have_room and router.is_full:
        status, serves = "too many requests are under way", False
    else:
        status = "ok" if alive == wanted else "degraded" if alive else "no worker is alive"
    return _answer({"status": status, "workers": alive, "workers_wanted": wanted}, 200 if serves else 503)


async def show_version(_: Request) -> Response:
    """GET /version."""
    return _answer({"version": version("twodeep")})


def _engine(request: Request) -> TextEngine:
    engine: TextEngine = request.app.state.engine
    return engine
