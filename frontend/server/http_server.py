"""The HTTP listener: a socket bound before the long start of the engine, served by uvicorn once the engine is ready."""

import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette

_BACKLOG = 2048  # connections that wait to be accepted: a burst of a thousand clients must not be refused


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
