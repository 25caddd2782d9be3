"""The web application: which route goes where."""

import asyncio
import time

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

from frontend.server.api.errors import EXPECTED, show_error
from frontend.server.api.guard import Guard
from frontend.server.api.hosts import Hosts
from frontend.server.api.openapi import Description
from frontend.server.api.origins import Origins
from frontend.server.api.routes import operations
from frontend.server.generation import TextEngine
from protocol.config import EngineConfig


def create_app(engine: TextEngine, config: EngineConfig) -> ASGIApp:
    """The ASGI application of a started engine. It has no lifespan: who starts the engine also ends it."""
    table = operations(engine)
    description = Description(table)
    app = Starlette(
        routes=[
            *(Route(operation.path, operation.handler, methods=[operation.method]) for operation in table),
            Route("/openapi.json", description.show_document),
            Route("/docs", description.show_page),
        ],
        exception_handlers=dict.fromkeys((*EXPECTED, Exception), show_error),
    )
    app.router.redirect_slashes = False  # paths come without one; a redirect would name the host that the client made up
    app.state.engine = engine
    app.state.decoding = asyncio.Lock()  # of large bodies
    app.state.created = int(time.time())  # shown to people only
    return Guard(
        app,
        config.api_keys,
        shares_prefixes=config.shared_prefix_cache,
        hosts=Hosts(config.host, config.allowed_hosts),
        origins=Origins(config.allowed_origins, credentials=config.allow_credentials),
    )
