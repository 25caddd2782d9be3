"""The asyncio client's socket."""

import asyncio
from pathlib import Path
from typing import cast

from frontend.client.discovery import cannot_connect
from frontend.client.outputs import Assembly
from frontend.client.session import Session
from frontend.errors import DeadlineExceeded, EngineUnavailable, RequestLost


class AsyncPipe(asyncio.Protocol):
    """A session and its socket. The methods without a docstring are asyncio's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._greeted = asyncio.Event()
        self.session = Session(self._greeted.set)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._transport: asyncio.Transport | None = None
        self._flush_is_due = False

    async def connect(self, timeout: float) -> None:
        """Raises EngineUnavailable when no engine is there, DeadlineExceeded when it does not get ready in time."""
        self._loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                await self._loop.create_unix_connection(lambda: self, str(self.path))
                await self._greeted.wait()
        except TimeoutError as error:
            self.close()
            raise DeadlineExceeded(f"the engine at {self.path} was not ready within {timeout:g} s") from error
        except OSError as error:
            raise cannot_connect(self.path, error) from error
        if self.session.lost is not None:
            self.close()
            if self.session.welcome is None and isinstance(self.session.lost, RequestLost):
                raise EngineUnavailable(f"the engine at {self.path} ended before it was ready")
            raise self.session.lost

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._transport = cast(asyncio.Transport, transport)
        self._flush()

    def data_received(self, data: bytes) -> None:  # noqa: D102
        self.session.feed(data)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: D102
        self.session.feed(b"")

    def flush(self) -> None:
        """Sends soon: everything that this tick of the loop has to say goes out in one write."""
        if self._loop is None or self._loop.is_closed() or self._flush_is_due:
            return
        self._flush_is_due = True
        self._loop.call_soon(self._flush)

    def cancel(self, assembly: Assembly) -> None:
        """Aborts a request. Without effect on one that has ended."""
        self.session.cancel(assembly)
        self.flush()

    def close(self) -> None:
        """Hangs up. Idempotent."""
        self.session.lose(RequestLost("the client is closed"))
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        self._flush_is_due = False
        if self._transport is not None and (data := self.session.take_outgoing()) and not self._transport.is_closing():
            self._transport.write(data)
