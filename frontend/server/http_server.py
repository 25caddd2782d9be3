"""The HTTP listener: a socket bound before the long start of the engine, served by uvicorn once the engine is ready."""

import contextlib
import errno
import socket
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette

from protocol.errors import AddressError

_BACKLOG = 2048  # connections that wait to be accepted: a burst of a thousand clients must not be refused


def bind_http(host: str, port: int) -> socket.socket:
    """Binds, and listens not yet. Raises AddressError that names what is taken."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # else asyncio leaves Nagle on: 40 ms
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressError(f"port {port} on {host} is taken: choose another with --port, or 0 for any free one") from error
        raise AddressError(f"cannot listen on {host} port {port}: {error}") from error
    return listener


class HttpServer(uvicorn.Server):
    """uvicorn on a bound socket. Signals are the process's business, not the server's."""

    def __init__(self, app: Starlette, listener: socket.socket, drain_timeout: float) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                loop="none",
                lifespan="off",
                log_level="warning",
                access_log=False,
                server_header=False,
                backlog=_BACKLOG,
                timeout_graceful_shutdown=max(1, round(drain_timeout)),
                limit_concurrency=None,
            )
        )
        self._listener = listener

    def listen(self) -> None:
        """From now on connections queue, so that nobody is refused who was told that the engine is ready."""
        self._listener.listen(_BACKLOG)

    async def run_until_stopped(self) -> None:
        """Serves until `stop`, then finishes the requests under way."""
        await self.serve(sockets=[self._listener])

    def stop(self) -> None:
        """Ends `run_until_stopped`: no new connections, running requests go on up to the drain timeout."""
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing: see the class."""
        yield
