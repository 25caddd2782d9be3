"""The web application: which route goes where."""

import time

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route

from frontend.server.api import service, tokens
from frontend.server.api.chat import chat_completions
from frontend.server.api.completions import completions
from frontend.server.api.errors import EXPECTED, show_error
from frontend.server.api.guard import Guard
from frontend.server.api.metrics import MetricsRoute
from frontend.server.generation import TextEngine
from protocol.config import EngineConfig


def create_app(engine: TextEngine, config: EngineConfig) -> Starlette:
    """The ASGI application of a started engine. It has no lifespan: who starts the engine also ends it."""
    app = Starlette(
        routes=[
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/chat/completions", chat_completions, methods=["POST"]),
            Route("/v1/models", service.models),
            Route("/v1/models/{name:path}", service.model),
            Route("/tokenize", tokens.tokenize, methods=["POST"]),
            Route("/detokenize", tokens.detokenize, methods=["POST"]),
            Route("/tokenizer_info", tokens.show_tokenizer),
            Route("/health", service.health),
            Route("/ready", service.ready),
            Route("/ping", service.health),
            Route("/metrics", MetricsRoute(engine).show),
            Route("/version", service.show_version),
        ],
        middleware=[Middleware(Guard, api_keys=config.api_keys)],
        exception_handlers=dict.fromkeys((*EXPECTED, Exception), show_error),
    )
    app.router.redirect_slashes = False  # paths come without one; a redirect would name the host that the client made up
    app.state.engine = engine
    app.state.created = int(time.time())  # shown to people only
    return app
