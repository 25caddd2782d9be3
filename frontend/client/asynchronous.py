"""The client for asyncio: the methods of the blocking one, any number of requests at a time."""

import asyncio
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Literal

from frontend.client.async_pipe import AsyncPipe
from frontend.client.async_requests import AsyncHandle, AsyncStream
from frontend.client.batch import Batch
from frontend.client.discovery import find_socket
from frontend.client.outputs import Assembly, RequestOutput
from frontend.client.progress import Progress
from frontend.client.prompts import Messages, Prompt, Prompts, checked, conversation, to_wire
from frontend.client.reports import steps_of
from frontend.client.session import CONNECT_SECONDS, QUESTION_SECONDS, Report
from frontend.client.steps import Steps
from frontend.errors import DeadlineExceeded
from frontend.wire import Health, HealthReport, StatsReport, TraceReport
from frontend.wire import Prompt as WirePrompt
from protocol.messages import EngineStats
from protocol.params import SamplingParams


class AsyncClient:
    """A connection to a running engine: `async with AsyncClient() as client`. A task that is cancelled aborts what it waits for."""

    def __init__(self, socket_path: str | os.PathLike[str] | None = None, *, connect_timeout: float = CONNECT_SECONDS) -> None:
        """The socket is found as the blocking client finds it."""
        self._pipe = AsyncPipe(find_socket(socket_path))
        self._session = self._pipe.session
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
        news = asyncio.Event()
        batch = Batch(self._session, prompts, params, news.set)
        try:
            with Progress(len(batch), shown=progress) as bar:
                async with asyncio.timeout(timeout):
                    while not batch.done:
                        news.clear()
                        batch.top_up()
                        self._pipe.flush()
                        await news.wait()
                        bar.update(batch.finished, batch.num_tokens)
            return batch.results()
        except TimeoutError as error:
            raise batch.late(timeout) from error
        finally:
            batch.cancel()
            self._pipe.flush()

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
        handle = AsyncHandle(self._pipe, *self._submit(prompt, params))
        try:
            return await handle.result(timeout)
        finally:
            handle.cancel()

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, *, cache_salt: str = "") -> AsyncStream:
        """The answer to a text, token ids or messages, piece by piece. Leaving the loop over it aborts the request."""
        return AsyncStream(self._pipe, *self._submit(to_wire(prompt), params, stream=True, cache_salt=cache_salt))

    def submit(self, prompt: Prompt, params: SamplingParams | None = None, *, cache_salt: str = "") -> AsyncHandle:
        """Sends a request for the answer to a text, token ids or messages, and returns at once."""
        return AsyncHandle(self._pipe, *self._submit(to_wire(prompt), params, cache_salt=cache_salt))

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

    def _submit(
        self, prompt: WirePrompt, params: SamplingParams | None, *, stream: bool = False, cache_salt: str = ""
    ) -> tuple[Assembly, asyncio.Event]:
        params, news = checked(params, self._session.engine.vocab_size), asyncio.Event()
        assembly = self._session.submit(prompt, params, stream=stream, cache_salt=cache_salt, notify=news.set)
        self._pipe.flush()
        return assembly, news

    async def _ask(self, what: Literal["health", "stats", "trace"]) -> Report:
        news = asyncio.Event()
        question = self._session.ask(what, news.set)
        self._pipe.flush()
        try:
            async with asyncio.timeout(QUESTION_SECONDS):
                await news.wait()
        except TimeoutError as error:
            text = f"the engine at {self._pipe.path} did not answer within {QUESTION_SECONDS:g} s"
            raise DeadlineExceeded(text) from error
        return question.answer()
