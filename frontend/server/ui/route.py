"""GET / and what belongs to it, as routes."""

import asyncio

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from frontend.server.api.errors import ApiError, ClientGone
from frontend.server.api.guard import ApiKeys
from frontend.server.api.sse import HEADERS, unless_gone
from frontend.server.generation import TextEngine
from frontend.server.ui.feed import Feed, Watcher
from frontend.server.ui.files import Files

EVENTS = "/ui/events"


class Page:
    """The page of one engine."""

    def __init__(self, engine: TextEngine, keys: ApiKeys) -> None:
        """`keys`: those that open the engine, as long as there are any."""
        self._files = Files(wants_key=lambda: bool(keys))
        self.feed = Feed(engine)

    @property
    def open_paths(self) -> frozenset[str]:
        """What is shown without a key: files that are the same for every engine."""
        return self._files.paths

    def routes(self) -> list[Route]:
        """All of them."""
        return [*(Route(path, self._files.show) for path in sorted(self._files.paths)), Route(EVENTS, self._events)]

    async def _events(self, request: Request) -> "EventsAnswer":
        """GET /ui/events: what the page is told."""
        # Who cannot read the answer has no business holding one open: browsers say where a request comes from.
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise ApiError(403, "these events are for the engine's own page", code="origin_not_allowed")
        await request.body()
        return EventsAnswer(self.feed, self.feed.watch())


class EventsAnswer:
    """The ASGI answer to a page that watches, until it leaves, does not keep up, or the engine drains."""

    def __init__(self, feed: Feed, watcher: Watcher) -> None:
        self._feed = feed
        self._watcher = watcher

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Streams. A page that does not keep up is cut off in the middle: it reads nothing that says so."""
        try:
            await unless_gone(receive, self._write_unless_dropped(send))
        except ClientGone:
            pass
        finally:
            self._feed.leave(self._watcher)

    async def _write_unless_dropped(self, send: Send) -> None:
        tasks = [asyncio.ensure_future(self._write(send)), asyncio.ensure_future(self._watcher.dropped.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        async for event in self._watcher:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
