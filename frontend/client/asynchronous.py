"""The client for asyncio: the signatures of the blocking one, for any number of requests at a time."""

import os
from collections.abc import AsyncIterator, Sequence
from types import TracebackType

from frontend.client.async_pipe import AsyncPipe, watch
from frontend.client.outputs import RequestOutput
from frontend.client.prompts import Messages, Prompt, Prompts
from frontend.client.requests import StreamedRequest, WholeRequest
from frontend.client.session import CONNECT_SECONDS, QUESTION_SECONDS, Session
from frontend.client.steps import Steps
from frontend.wire import Delta, Health
from protocol.messages import EngineStats
from protocol.params import SamplingParams


class AsyncHandle:
    """A request whose whole answer is wanted."""

    def __init__(self, pipe: AsyncPipe, request: WholeRequest) -> None:
        self._pipe = pipe
        self._request = request
        self._news = watch(request)
        pipe.flush()

    @property
    def done(self) -> bool:
        """Whether `result` would return, or raise, at once."""
        return self._request.ready

    async def result(self, timeout: float | None = None) -> RequestOutput:
        """Waits for the whole answer. Raises DeadlineExceeded after `timeout` seconds, and then the request is aborted."""
        return await self._pipe.wait(self._request, self._news, timeout)

    def cancel(self) -> None:
        """Aborts the request. Idempotent, and without effect on one that has ended."""
        self._request.close()
        self._pipe.flush()


class AsyncStream:
    """The answer to a request, piece by piece. The request is aborted when nobody holds the stream any more."""

    def __init__(self, pipe: AsyncPipe, request: StreamedRequest) -> None:
        self._pipe = pipe
        self._request = request
        self._news = watch(request)
        pipe.flush()

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        if (delta := await self._pipe.wait(self._request, self._news, None)) is None:
            raise StopAsyncIteration
        return delta

    def close(self) -> None:
        """Aborts the request; nothing follows. Idempotent."""
        self._request.close()
        self._pipe.flush()

    def __del__(self) -> None:
        self.close()


class AsyncClient:
    """A connection to a running engine: `async with AsyncClient() as client`. A task that is cancelled aborts what it waits for."""

    def __init__(
        self, socket_path: str | os.PathLike[str] | None = None, *, connect_timeout: float | None = CONNECT_SECONDS
    ) -> None:
        """The socket is found as the blocking client finds it."""
        self._session = Session(socket_path)
        self._pipe = AsyncPipe(self._session)
        self._connect_timeout = connect_timeout

    async def __aenter__(self) -> "AsyncClient":
        await self.connect()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    async def connect(self) -> None:
        """Connects; an engine that is still starting is waited for.

        Raises EngineUnavailable, naming the socket, when none is there, DeadlineExceeded when it does not get ready, ProtocolError
        when it is of another version.
        """
        await self._pipe.connect(self._connect_timeout)

    def close(self) -> None:
        """Closes the connection; the engine aborts what is under way. Idempotent."""
        self._pipe.close()

    async def generate(
        self,
        prompts: Prompts,
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool | None = None,
        timeout: float | None = None,
    ) -> list[RequestOutput]:
        """Answers in the order of the prompts: texts or lists of token ids. `progress=None`: a bar if there is a terminal.

        Raises InvalidRequest, Overloaded, RequestLost, or DeadlineExceeded after `timeout` seconds; the rest is then aborted.
        """
        return await self._pipe.finish(self._session.generate(prompts, params, progress=progress), timeout)

    async def chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        timeout: float | None = None,
    ) -> RequestOutput:
        """The answer to a conversation of {"role", "content"} messages, by the model's own chat template."""
        options = {"add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message}
        return await self._pipe.finish(self._session.chat(messages, params, **options), timeout)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, *, cache_salt: str = "") -> AsyncStream:
        """The answer to a text, token ids or messages, piece by piece. Leaving the loop over it aborts the request."""
        return AsyncStream(self._pipe, self._session.stream(prompt, params, cache_salt))

    def submit(self, prompt: Prompt, params: SamplingParams | None = None, *, cache_salt: str = "") -> AsyncHandle:
        """Sends a request for the answer to a text, token ids or messages, and returns at once."""
        return AsyncHandle(self._pipe, self._session.submit(prompt, params, cache_salt))

    async def health(self) -> Health:
        """Whether the engine serves, and how many workers are alive."""
        return await self._pipe.finish(self._session.health(), QUESTION_SECONDS)

    async def stats(self) -> EngineStats:
        """Queue, workers and counters."""
        return await self._pipe.finish(self._session.stats(), QUESTION_SECONDS)

    async def trace(self) -> Steps:
        """The latest steps of all workers, with the time of every stage."""
        return await self._pipe.finish(self._session.trace(), QUESTION_SECONDS)
