"""The client for asyncio: the methods of the blocking one, any number of requests at a time."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Literal, cast

from frontend.client.batch import Batch
from frontend.client.discovery import cannot_connect, find_socket
from frontend.client.outputs import Assembly, RequestOutput
from frontend.client.progress import Progress
from frontend.client.prompts import Messages, Prompt, Prompts, checked, conversation, to_wire
from frontend.client.reports import steps_of
from frontend.client.session import Report, Session
from frontend.errors import DeadlineExceeded, EngineUnavailable, RequestLost
from frontend.trace.steps import Steps
from frontend.wire import Delta, Health, HealthReport, StatsReport, TraceReport, Welcome
from frontend.wire import Prompt as WirePrompt
from protocol.messages import EngineStats
from protocol.params import SamplingParams

_QUESTION_SECONDS = 30.0  # an engine that is alive answers in milliseconds


class _Pipe(asyncio.Protocol):
    """Carries bytes between the session and its socket."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._flush_is_due = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.flush()

    def data_received(self, data: bytes) -> None:
        self._session.feed(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._session.feed(b"")

    def flush_soon(self) -> None:
        """Everything that this tick of the loop has to say goes out in one write."""
        if not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        self._flush_is_due = False
        if (data := self._session.take_outgoing()) and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        self.flush()
        self._transport.close()


class AsyncHandle:
    """A request that was submitted."""

    def __init__(self, client: "AsyncClient", assembly: Assembly, news: asyncio.Event) -> None:
        self._client = client
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
        self._client._cancel(self._assembly)


class AsyncClient:
    """A connection to a running engine: `async with AsyncClient() as client`. Cancelling a task that waits aborts its request."""

    def __init__(self, socket_path: str | os.PathLike[str] | None = None, *, connect_timeout: float = 60.0) -> None:
        self._path = find_socket(socket_path)
        self._connect_timeout = connect_timeout
        self._greeted = asyncio.Event()
        self._session = Session(self._greeted.set)
        self._pipe: _Pipe | None = None

    async def __aenter__(self) -> "AsyncClient":
        await self.connect()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    async def connect(self) -> None:
        """Connects; an engine that is still starting is waited for.

        Raises EngineUnavailable, naming the socket, when no engine is there, and DeadlineExceeded when it does not get ready.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout):
                _, self._pipe = await loop.create_unix_connection(lambda: _Pipe(self._session), str(self._path))
                await self._greeted.wait()
        except TimeoutError as error:
            self.close()
            raise DeadlineExceeded(f"the engine at {self._path} was not ready within {self._connect_timeout:g} s") from error
        except OSError as error:
            raise cannot_connect(self._path, error) from error
        if self._session.welcome is None:
            self.close()
            if isinstance(self._session.lost, RequestLost):
                raise EngineUnavailable(f"the engine at {self._path} ended before it was ready")
        self._engine  # noqa: B018 - raises what else went wrong

    def close(self) -> None:
        """Closes the connection; the engine aborts what is under way. Idempotent."""
        self._session.lose(RequestLost("the client is closed"))
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

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
        self._engine  # noqa: B018 - raises when the connection is lost
        news = asyncio.Event()
        batch = Batch(self._session, prompts, params, news.set)
        try:
            with Progress(len(batch), shown=progress) as bar:
                async with asyncio.timeout(timeout):
                    while not batch.done:
                        news.clear()
                        batch.top_up()
                        self._flush_soon()
                        await news.wait()
                        bar.update(batch.finished, batch.num_tokens)
            return batch.results()
        except TimeoutError as error:
            text = f"{batch.finished} of {len(batch)} answers within {timeout:g} s; the rest was aborted"
            raise DeadlineExceeded(text) from error
        finally:
            batch.cancel()
            self._flush_soon()

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
        prompt = conversation(messages, add_generation_prompt=add_generation_prompt, continue_final_message=continue_final_message)
        handle = self._submit(prompt, params)
        try:
            return await handle.result(timeout)
        finally:
            handle.cancel()

    async def stream(self, prompt: Prompt, params: SamplingParams | None = None, *, cache_salt: str = "") -> AsyncIterator[Delta]:
        """Yields the answer to a text, token ids or messages piece by piece. Closing the iterator aborts the request."""
        handle = self._submit(to_wire(prompt), params, stream=True, cache_salt=cache_salt)
        assembly, news = handle._assembly, handle._news
        try:
            while not assembly.done or assembly.unread:
                if not assembly.unread:
                    news.clear()
                    await news.wait()
                while assembly.unread:
                    yield assembly.unread.popleft()
            assembly.result()  # raises what it failed with
        finally:
            handle.cancel()

    def submit(self, prompt: Prompt, params: SamplingParams | None = None, *, cache_salt: str = "") -> AsyncHandle:
        """Sends a request for the answer to a text, token ids or messages, and returns at once."""
        return self._submit(to_wire(prompt), params, cache_salt=cache_salt)

    async def health(self) -> Health:
        """Whether the engine serves, and how many workers are alive."""
        report = await self._ask("health")
        assert isinstance(report, HealthReport)
        return report.health

    async def stats(self) -> EngineStats:
        """Queue, workers and counters."""
        report = await self._ask("stats")
        assert isinstance(report, StatsReport)
        return report.stats

    async def trace(self) -> Steps:
        """The latest steps of all workers, with the time of every stage."""
        report = await self._ask("trace")
        assert isinstance(report, TraceReport)
        return steps_of(report)

    @property
    def _engine(self) -> Welcome:
        """What the engine said of itself. Raises what ended the connection."""
        if self._session.lost is not None:
            raise self._session.lost
        if self._session.welcome is None:
            raise EngineUnavailable("the client is not connected: use `async with`, or connect() first")
        return self._session.welcome

    def _submit(
        self, prompt: WirePrompt, params: SamplingParams | None, *, stream: bool = False, cache_salt: str = ""
    ) -> AsyncHandle:
        params, news = checked(params, self._engine.vocab_size), asyncio.Event()
        assembly = self._session.submit(prompt, params, stream=stream, cache_salt=cache_salt, notify=news.set)
        self._flush_soon()
        return AsyncHandle(self, assembly, news)

    def _cancel(self, assembly: Assembly) -> None:
        self._session.cancel(assembly)
        self._flush_soon()

    async def _ask(self, what: Literal["health", "stats", "trace"]) -> Report:
        self._engine  # noqa: B018 - raises when the connection is lost
        news = asyncio.Event()
        question = self._session.ask(what, news.set)
        self._flush_soon()
        try:
            async with asyncio.timeout(_QUESTION_SECONDS):
                await news.wait()
        except TimeoutError as error:
            raise DeadlineExceeded(f"the engine at {self._path} did not answer within {_QUESTION_SECONDS:g} s") from error
        if question.report is None:
            raise question.error or EngineUnavailable("no answer")
        return question.report

    def _flush_soon(self) -> None:
        if self._pipe is not None:
            self._pipe.flush_soon()
