"""Serves Python clients on a Unix stream socket (`frontend.wire`); not ZeroMQ, so that a client that leaves is noticed."""

import asyncio
import logging
from pathlib import Path

from frontend.server.generation import TextEngine
from frontend.server.ipc.connection import Connection
from frontend.server.ipc.inbox import IN_WORK
from frontend.server.ipc.listener import ListeningSocket, may_connect
from frontend.server.ipc.reports import Reports
from frontend.server.turns import Turns

_LOG = logging.getLogger(__name__)


class IpcServer:
    """The interface of the Python client. The socket listens from `bind` on: who connects early waits for the engine."""

    engine: TextEngine  # from `start` on, and so are …
    reports: Reports  # … these

    def __init__(self, path: Path) -> None:
        self._path = path
        self._listener: ListeningSocket | None = None
        self._server: asyncio.Server | None = None
        self.connections: set[Connection] = set()
        self.malformed_frames = 0
        self.turns = Turns(IN_WORK)

    def bind(self) -> None:
        """Takes the path. Raises AddressError when it is taken or cannot be used."""
        self._listener = ListeningSocket(self._path)

    async def start(self, engine: TextEngine) -> None:
        """Serves from now on."""
        assert self._listener is not None, "bind comes first"
        self.engine = engine
        self.reports = Reports(engine, self._counters)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: Connection(self, _is_welcome), sock=self._listener.socket)

    def stop_accepting(self) -> None:
        """Takes no new clients; those that are here see their requests end, and are told what happens to new ones."""
        if self._server is not None:
            self._server.close()
        self._remove()

    async def finish(self) -> None:
        """Delivers what is left, then hangs up; returns when it is read. Requests that still run are lost."""
        all_ended = self.engine.router.num_requests == 0
        await asyncio.gather(*(one.finish(wait_for_requests=all_ended) for one in self.connections))

    def abort(self) -> None:
        """Hangs up on everyone."""
        for connection in list(self.connections):
            connection.abort()

    def close(self) -> None:
        """Removes the socket."""
        self._remove()

    def _counters(self) -> dict[str, int]:
        return {
            "malformed_client_frames": self.malformed_frames,
            "malformed_scheduler_frames": self.engine.router.malformed_frames,
            "clients": len(self.connections),
        }

    def _remove(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None


def _is_welcome(transport: asyncio.Transport) -> bool:
    if may_connect(transport.get_extra_info("socket")):
        return True
    _LOG.warning("a Python client of another user was turned away")
    return False
