"""Requests that were submitted, as users of the asyncio client hold them."""

import asyncio
from collections.abc import AsyncIterator

from frontend.client.async_pipe import AsyncPipe
from frontend.client.outputs import Assembly, RequestOutput
from frontend.errors import DeadlineExceeded
from frontend.wire import Delta


class AsyncHandle:
    """A request whose whole answer is wanted."""

    def __init__(self, pipe: AsyncPipe, assembly: Assembly, news: asyncio.Event) -> None:
        """`news` is set whenever something came."""
        self._pipe = pipe
        self._assembly = assembly
        self._news = news

    @property
    def done(self) -> bool:
        """Whether `result` would return, or raise, at once."""
        return self._assembly.done

    async def result(self, timeout: float | None = None) -> RequestOutput:
        """Waits for the whole answer. Raises DeadlineExceeded after `timeout` seconds, and then the request is aborted."""
        try:
            async with asyncio.timeout(timeout):
                while not self._assembly.done:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError as error:
            self.cancel()
            raise DeadlineExceeded(f"no answer within {timeout:g} s; the request was aborted") from error
        return self._assembly.result()

    def cancel(self) -> None:
        """Aborts the request. Idempotent, and without effect on one that has ended."""
        self._pipe.cancel(self._assembly)


class AsyncStream:
    """The answer to a request, piece by piece. The request is aborted when nobody holds the stream any more."""

    def __init__(self, pipe: AsyncPipe, assembly: Assembly, news: asyncio.Event) -> None:
        """`news` is set whenever something came."""
        self._pipe = pipe
        self._assembly = assembly
        self._news = news
        self._closed = False

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        assembly = self._assembly
        while not assembly.unread and not assembly.done and not self._closed:
            self._news.clear()
            await self._news.wait()
        if self._closed:
            raise StopAsyncIteration
        if assembly.unread:
            return assembly.unread.popleft()
        self._closed = True
        assembly.result()  # raises what it failed with
        raise StopAsyncIteration

    def close(self) -> None:
        """Aborts the request; nothing follows. Idempotent."""
        self._closed = True
        self._pipe.cancel(self._assembly)

    def __del__(self) -> None:
        self.close()
