"""The asyncio client's socket."""

import asyncio
import contextlib
from typing import TypeVar, cast

from frontend.client.awaited import Awaited
from frontend.client.session import RETRY_SECONDS, Session
from protocol.clock import now

Answer = TypeVar("Answer")


class AsyncPipe(asyncio.Protocol):
    """Connects a session, and waits for what it awaits. The methods without a docstring are asyncio's."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._loop: asyncio.AbstractEventLoop | None = None
        self._transport: asyncio.Transport | None = None
        self._flush_is_due = False
        self._return: asyncio.Task[None] | None = None  # to an engine that was gone

    async def connect(self, timeout: float | None) -> None:
        """Waits until the engine is ready. Raises EngineUnavailable when none is there, DeadlineExceeded when it takes too long."""
        self._loop = asyncio.get_running_loop()
        greeting = self._session.greeting
        try:
            async with asyncio.timeout(timeout):
                await self._loop.create_unix_connection(lambda: self, str(self._session.path))
                await self.wait(greeting, watch(greeting), None)
        except OSError as error:
            self.close()
            raise self._session.cannot_connect(error, timeout) from error
        except BaseException:
            self.close()
            raise

    async def wait(self, awaited: Awaited[Answer], news: asyncio.Event, timeout: float | None) -> Answer:
        """The answer; `news` is that of `watch`. Raises what `awaited` fails with, or what it says when it is late."""
        try:
            async with asyncio.timeout(timeout):
                while not awaited.ready:
                    news.clear()
                    await news.wait()
        except TimeoutError as error:
            assert timeout is not None
            late = awaited.late(timeout)
            self.flush()
            raise late from error
        return awaited.result()

    async def finish(self, awaited: Awaited[Answer], timeout: float | None) -> Answer:
        """The answer of what nobody else knows of: it is closed, however this ends."""
        self.flush()
        try:
            return await self.wait(awaited, watch(awaited), timeout)
        finally:
            awaited.close()
            self.flush()

    def flush(self) -> None:
        """Sends soon: everything that this tick of the loop has to say goes out in one write."""
        if self._loop is None or self._loop.is_closed() or self._flush_is_due:
            return
        self._flush_is_due = True
        self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Hangs up. Idempotent."""
        self._session.close()
        if self._return is not None:
            self._return.cancel()
        if self._transport is not None:
            self._transport.abort()  # what was not sent yet is of no use any more

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._transport = cast(asyncio.Transport, transport)
        self._flush()

    def data_received(self, data: bytes) -> None:  # noqa: D102
        self._session.feed(data)
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: D102
        if self._session.broke() and self._return is None and self._loop is not None:
            self._return = self._loop.create_task(self._reconnect())

    async def _reconnect(self) -> None:
        """Until an engine is there again, or was waited for long enough."""
        assert self._loop is not None
        deadline = now() + self._session.reconnect
        try:
            while self._session.lost is None and not self._session.greeted:
                if now() > deadline:
                    self._session.give_up()
                    self.close()
                    return
                if self._transport is None or self._transport.is_closing():
                    with contextlib.suppress(OSError):
                        await self._loop.create_unix_connection(lambda: self, str(self._session.path))
                await asyncio.sleep(RETRY_SECONDS)
        finally:
            self._return = None

    def _flush(self) -> None:
        self._flush_is_due = False
        if self._transport is not None and (data := self._session.take_outgoing()) and not self._transport.is_closing():
            self._transport.write(data)


def watch(awaited: Awaited[Answer]) -> asyncio.Event:
    """Is set whenever there is news of `awaited`."""
    news = asyncio.Event()
    awaited.notify = news.set
    return news
