"""The HTTP server: its connections, and what they may take together."""

import asyncio
import logging
import socket
from collections.abc import Coroutine
from email.utils import formatdate
from typing import Any

from starlette.types import ASGIApp

from frontend.server.api.errors import ApiError
from frontend.server.bind import explain
from frontend.server.http.connection import Connection
from frontend.server.http.exchange import Exchange
from frontend.server.http.limits import Limits
from frontend.server.http.occasional import OccasionalLog
from frontend.server.turns import Turns
from protocol.clock import now

_REFUSALS = OccasionalLog(logging.getLogger(__name__), logging.WARNING)

_BACKLOG = 2048  # connections that wait to be accepted: a burst of a thousand clients must not be refused


class HttpServer:
    """Serves an ASGI application on a bound socket, from `start` to `finish`."""

    def __init__(self, app: ASGIApp, listener: socket.socket, limits: Limits | None = None, *, held: bool = False) -> None:
        """`held`: somebody else holds the listening socket too, and will have another engine serve who waits there."""
        self.app = app
        self.limits = limits or Limits()
        self.draining = False
        self.turns = Turns(self.limits.in_work)
        self.held = 0  # bytes received that the application has not taken
        self.connections: set[Connection] = set()
        self._idle: dict[Connection, None] = {}  # the one that is idle longest first
        self._listener = listener
        self._held = held
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._emptied = asyncio.Event()
        self._stirred = asyncio.Event()  # a connection does not rest any more
        self._date = b""
        self._date_until = 0.0

    async def start(self) -> None:
        """Serves from now on. Raises AddressError when another listens on a port that both had bound."""
        self._give_up_the_silent()
        loop = asyncio.get_running_loop()
        try:
            self._listener.listen(_BACKLOG)  # uvloop listens too, but keeps to itself that it cannot
        except OSError as error:
            host, port = self._listener.getsockname()[:2]
            raise explain(error, host, port) from error
        self._server = await loop.create_server(lambda: Connection(self), sock=self._listener, backlog=_BACKLOG)

    def drain(self) -> None:
        """Answers whoever comes, and keeps no connection for another request: what is refused is the application's to say.

        Where the listening socket is held, nobody comes any more: they wait for the next engine, as those will who rest here.
        """
        self.draining = True
        if self._held and self._server is not None:
            self._server.close()
            for connection in [one for one in self._idle if not one.fresh]:
                connection.finish()

    async def all_heard(self) -> None:
        """Returns when every connection that is here has brought its first request, or is gone."""
        while any(connection.fresh for connection in self.connections):
            self._stirred.clear()
            await self._stirred.wait()

    async def finish(self) -> None:
        """Takes no more connections, lets the answers under way be written, for a moment, and closes everything."""
        self.draining = True
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.finish()
        try:
            async with asyncio.timeout(self.limits.last_words_seconds):
                await self._all_gone()
        except TimeoutError:
            self.abort()
            await self._all_gone()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def abort(self) -> None:
        """Hangs up on everyone."""
        for connection in list(self.connections):
            connection.abort()

    async def _all_gone(self) -> None:
        while self.connections:
            self._emptied.clear()
            await self._emptied.wait()

    # for the connections

    def admit(self, connection: Connection) -> bool:
        """See Host. The one that is idle longest makes room; where none is, the new one is turned away."""
        self.connections.add(connection)
        if len(self.connections) <= self.limits.connections:
            return True
        if self._idle:
            longest = next(iter(self._idle))
            self.wake(longest)
            longest.finish()
            return True
        if len(self.connections) > self.limits.connections + self.limits.turned_away:
            connection.abort()
        return False

    def forget(self, connection: Connection) -> None:
        """See Host."""
        self.connections.discard(connection)
        self.wake(connection)
        if not self.connections:
            self._emptied.set()

    def rest(self, connection: Connection) -> None:
        """See Host."""
        self._idle[connection] = None

    def wake(self, connection: Connection) -> None:
        """See Host."""
        self._idle.pop(connection, None)
        self._stirred.set()

    def hold(self, size: int) -> bool:
        """See Host."""
        self.held += size
        return size <= 0 or self.held <= self.limits.received

    def run(self, exchange: Exchange) -> None:
        """See Host."""
        self._spawn(exchange.run(self.app))

    def date(self) -> bytes:
        """See Host. Written anew once a second."""
        if (time := now()) >= self._date_until:
            self._date_until = time + 1.0
            self._date = formatdate(usegmt=True).encode()
        return self._date

    def refused(self, error: ApiError) -> None:
        """See Host."""
        _REFUSALS.say(f"a request over HTTP was refused with status {error.status}: {error.message}")

    def _give_up_the_silent(self) -> None:
        """Has the kernel end connections whose client vanished, or reads nothing; they inherit what the listener has."""
        milliseconds = int(1000 * self.limits.silent_seconds)
        probe = max(1, milliseconds // 4000)  # seconds between the questions to an idle host
        for level, option, value in (
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, probe),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, probe),
            (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds),
        ):
            self._listener.setsockopt(level, option, value)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
