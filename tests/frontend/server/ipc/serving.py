"""An IPC server in front of a running engine, and a client that speaks the wire by hand."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from frontend.server.ipc.server import IpcServer
from frontend.wire import SERVER_MESSAGES, WIRE_VERSION, FrameReader, Hello, ServerMessage, Submit, TokenPrompt, frames
from protocol.codec import encode, pack_int32
from protocol.params import SamplingParams
from tests.frontend.server.api.running import RunningEngine

Wanted = TypeVar("Wanted", bound=ServerMessage)


@dataclass
class Served:
    """A server, and the engine behind it."""

    path: Path
    server: IpcServer
    running: RunningEngine

    def count(self, counter: str) -> int:
        """A counter of the scheduler."""
        return self.running.run(self.running.engine.router.stats()).counters.get(counter, 0)


@contextmanager
def serving(running: RunningEngine, path: Path, *, grace: float = 10.0) -> Iterator[Served]:
    """Serves `running` at `path`; at the end, clients get `grace` seconds to read what is left."""
    server = IpcServer(path)
    server.bind()
    try:
        running.run(server.start(running.engine))
        yield Served(path, server, running)
        running.run(_end(server, grace))
    finally:
        server.close()


async def _end(server: IpcServer, grace: float) -> None:
    server.stop_accepting()
    goodbye = asyncio.ensure_future(server.finish())
    await asyncio.wait({goodbye}, timeout=grace)
    server.abort()
    await goodbye


class RawClient:
    """Sends what it is told and nothing else."""

    def __init__(self, path: Path, *, hello: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(str(path))
        self._reader = FrameReader()
        self._received: list[ServerMessage] = []
        if hello:
            self.send(Hello(WIRE_VERSION))

    def __enter__(self) -> "RawClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *messages: object) -> None:
        self.socket.sendall(frames(map(encode, messages)))

    def read(self) -> ServerMessage | None:
        """The next message; None when the server hung up."""
        while not self._received:
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            for frame in self._reader.feed(data):
                self._received += SERVER_MESSAGES.decode(frame)
        return self._received.pop(0)

    def expect(self, kind: type[Wanted]) -> Wanted:
        """The next message of this kind; others are passed over."""
        while True:
            message = self.read()
            assert message is not None, f"the server hung up instead of sending {kind.__name__}"
            if isinstance(message, kind):
                return message


def endless(request_id: int, **fields: object) -> Submit:
    """A request that runs until the context is full."""
    params = SamplingParams(ignore_eos=True, **fields)  # type: ignore[arg-type]
    return Submit(request_id, TokenPrompt(pack_int32([1, 2, 3])), params)
