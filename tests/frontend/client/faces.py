"""Both clients with the methods of the blocking one, so that the tests of one are those of both."""

import asyncio
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from frontend.client import AsyncClient, AsyncHandle, AsyncStream, Client, Delta, RequestOutput

Answer = TypeVar("Answer")

FACES = ("blocking", "asyncio")


def connect(face: str, path: Path, **options: float) -> Client:
    """A client, connected."""
    return Client(path, **options) if face == "blocking" else cast(Client, DrivenClient(path, **options))


class DrivenClient:
    """An AsyncClient, driven by a loop of its own."""

    def __init__(self, path: Path, **options: float) -> None:
        self._runner = asyncio.Runner()
        self._closed = False
        self._client = AsyncClient(path, **options)
        try:
            self.run(self._client.connect())
        except BaseException:
            self._runner.close()
            raise

    def run(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        return self._runner.run(work)

    def __repr__(self) -> str:
        return repr(self._client).replace("AsyncClient", "Client")

    def __enter__(self) -> "DrivenClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._client.close()
        self._runner.run(asyncio.sleep(0))  # the transport's own last turn
        self._runner.close()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return lambda *arguments, **options: self.run(method(*arguments, **options))

    def chat(self, *arguments: Any, **options: Any) -> Any:
        answer: Any = self.run(self._client.chat(*arguments, **options))
        return DrivenStream(self, answer) if isinstance(answer, AsyncStream) else answer

    def submit(self, *arguments: Any, **options: Any) -> "DrivenHandle":
        return DrivenHandle(self, self._client.submit(*arguments, **options))

    def stream(self, *arguments: Any, **options: Any) -> "DrivenStream":
        return DrivenStream(self, self._client.stream(*arguments, **options))


class DrivenHandle:
    def __init__(self, client: DrivenClient, handle: AsyncHandle) -> None:
        self._client, self._handle = client, handle
        self.cancel = handle.cancel

    def __repr__(self) -> str:
        return repr(self._handle).replace("AsyncHandle", "Handle")

    @property
    def done(self) -> bool:
        self._client.run(asyncio.sleep(0))
        return self._handle.done

    def result(self, timeout: float | None = None) -> RequestOutput:
        return self._client.run(self._handle.result(timeout))


class DrivenStream:
    def __init__(self, client: DrivenClient, stream: AsyncStream) -> None:
        self._client, self._stream = client, stream
        self.close = stream.close

    def __iter__(self) -> Iterator[Delta]:
        return self

    def __next__(self) -> Delta:
        try:
            return self._client.run(self._next())
        except StopAsyncIteration:
            raise StopIteration from None

    async def _next(self) -> Delta:
        return await anext(self._stream)
