"""The web application: which route goes where."""

import time
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

from frontend.server.api.errors import EXPECTED, show_error
from frontend.server.api.guard import ApiKeys, Guard
from frontend.server.api.hosts import Hosts
from frontend.server.api.ignored_fields import IgnoredFields
from frontend.server.api.openapi import Description
from frontend.server.api.origins import Origins
from frontend.server.api.routes import Handler, Operation, operations
from frontend.server.generation import TextEngine
from frontend.server.turns import Alone
from frontend.server.ui.route import Page
from protocol.config import EngineConfig


def create_app(engine: TextEngine, config: EngineConfig, api_keys: ApiKeys | None = None) -> ASGIApp:
    """The ASGI application of a started engine. It has no lifespan: who starts the engine also ends it.

    `api_keys`: in place of those of `config`, since they may change.
    """
    table = operations(engine)
    description = Description(table)
    keys = ApiKeys(config.api_keys, shares_prefixes=config.shared_prefix_cache) if api_keys is None else api_keys
    page = Page(engine, keys) if config.ui else None
    app = Starlette(
        routes=[
            *(Route(path, handler, methods=methods) for (path, handler), methods in _by_path(table).items()),
            Route("/openapi.json", description.show_document),
            Route("/docs", description.show_page),
            *(page.routes() if page is not None else ()),
        ],
        exception_handlers=dict.fromkeys((*EXPECTED, Exception), show_error),
    )
    app.router.redirect_slashes = False  # paths come without one; a redirect would name the host that the client made up
    app.state.engine = engine
    app.state.ignored = IgnoredFields(engine.router.measures.ignored)
    app.state.decoding = Alone()  # of large bodies
    app.state.created = int(time.time())  # shown to people only
    return Guard(
        app,
        keys,
        open_paths=page.open_paths if page is not None else frozenset(),
        hosts=Hosts(config.host, config.allowed_hosts),
        origins=Origins(config.allowed_origins, credentials=config.allow_credentials),
        spans=engine.spans,
    )


def _by_path(table: Sequence[Operation]) -> dict[tuple[str, Handler], list[str]]:
    """The methods of each path, which its answers to other methods have to name together."""
    methods: dict[tuple[str, Handler], list[str]] = {}
    for operation in table:
        methods.setdefault((operation.path, operation.handler), []).append(operation.method)
    return methods
