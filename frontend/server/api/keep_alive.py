"""Comments in a stream of events that has nothing to say: clients and proxies give up connections that are silent for long."""

import asyncio
from types import TracebackType

from starlette.types import Send

_COMMENT = b": keep-alive\n\n"  # which every reader of events skips


class KeepAlive:
    """Writes the pieces of a stream, between `async with` and its end, and a comment after each interval without any."""

    def __init__(self, send: Send, interval: float) -> None:
        """`send`: of the application. `interval`: seconds; 0: no comments."""
        self._send = send
        self._interval = interval
        self._written = self._seen = 0  # pieces, now and when the timer ran out last
        self._timer: asyncio.TimerHandle | None = None
        self._comment: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "KeepAlive":
        self._wait()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._comment is not None:
            self._comment.cancel()
            await asyncio.gather(self._comment, return_exceptions=True)

    async def write(self, data: bytes) -> None:
        """A piece; more will follow."""
        self._written += 1
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    def _wait(self) -> None:
        if self._interval > 0.0:
            self._timer = asyncio.get_running_loop().call_later(self._interval, self._look)

    def _look(self) -> None:
        """A timer for each piece would cost more than a silence that may last nearly two intervals in the middle of a stream."""
        if self._written == self._seen and (self._comment is None or self._comment.done()):
            self._comment = asyncio.get_running_loop().create_task(self._say())
        self._seen = self._written
        self._wait()

    async def _say(self) -> None:
        await self._send({"type": "http.response.body", "body": _COMMENT, "more_body": True})
