"""The blocking client."""

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Literal

from frontend.client.batch import Batch
from frontend.client.discovery import find_socket
from frontend.client.outputs import Assembly, RequestOutput
from frontend.client.pipe import Pipe
from frontend.client.progress import Progress
from frontend.client.prompts import Messages, Prompt, Prompts, checked, conversation, to_wire
from frontend.client.reports import steps_of
from frontend.client.requests import Handle, Stream
from frontend.client.session import CONNECT_SECONDS, QUESTION_SECONDS, Report
from frontend.client.steps import Steps
from frontend.errors import DeadlineExceeded
from frontend.wire import Health, HealthReport, StatsReport, TraceReport
from frontend.wire import Prompt as WirePrompt
from protocol.clock import now
from protocol.messages import EngineStats
from protocol.params import SamplingParams


class Client:
    """A connection to a running engine: a context manager, for use by one thread at a time.

    It reads its socket only while one of its methods waits, and then for all requests of the connection.
    """

    def __init__(self, socket_path: str | os.PathLike[str] | None = None, *, connect_timeout: float = CONNECT_SECONDS) -> None:
        """Connects to `socket_path` (a path or unix:///path), $ENGINE_SOCKET, or where an engine listens that was not told where.

        An engine that is still starting is waited for. Raises EngineUnavailable, naming the socket, when none is there,
        DeadlineExceeded when it does not get ready, ProtocolError when it is of another version.
        """
        self._pipe = Pipe(find_socket(socket_path), connect_timeout)
        self._session = self._pipe.session

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; the engine aborts what is under way. Idempotent."""
        self._pipe.close()

    def generate(
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
        batch = Batch(self._session, prompts, params)
        deadline = None if timeout is None else now() + timeout
        try:
            with Progress(len(batch), shown=progress) as bar:
                while not batch.done:
                    batch.top_up()
                    if not self._pipe.wait(batch.has_news, None if deadline is None else max(0.0, deadline - now())):
                        raise batch.late(timeout)
                    bar.update(batch.finished, batch.num_tokens)
            return batch.results()
        finally:
            batch.cancel()
            self._pipe.flush()

    def chat(
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
        handle = Handle(self._pipe, self._submit(prompt, params))
        try:
            return handle.result(timeout)
        finally:
            handle.cancel()

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, *, cache_salt: str = "") -> Stream:
        """The answer to a text, token ids or messages, piece by piece. Leaving the loop over it aborts the request."""
        return Stream(self._pipe, self._submit(to_wire(prompt), params, stream=True, cache_salt=cache_salt))

    def submit(self, prompt: Prompt, params: SamplingParams | None = None, *, cache_salt: str = "") -> Handle:
        """Sends a request for the answer to a text, token ids or messages, and returns at once."""
        return Handle(self._pipe, self._submit(to_wire(prompt), params, cache_salt=cache_salt))

    def health(self) -> Health:
        """Whether the engine serves, and how many workers are alive."""
        report = self._ask("health")
        assert isinstance(report, HealthReport)
        return report.health

    def stats(self) -> EngineStats:
        """Queue, workers and counters."""
        report = self._ask("stats")
        assert isinstance(report, StatsReport)
        return report.stats

    def trace(self) -> Steps:
        """The latest steps of all workers, with the time of every stage."""
        report = self._ask("trace")
        assert isinstance(report, TraceReport)
        return steps_of(report)

    def _submit(self, prompt: WirePrompt, params: SamplingParams | None, *, stream: bool = False, cache_salt: str = "") -> Assembly:
        params = checked(params, self._session.engine.vocab_size)
        assembly = self._session.submit(prompt, params, stream=stream, cache_salt=cache_salt)
        self._pipe.flush()
        return assembly

    def _ask(self, what: Literal["health", "stats", "trace"]) -> Report:
        question = self._session.ask(what)
        if not self._pipe.wait(lambda: question.done, QUESTION_SECONDS):
            raise DeadlineExceeded(f"the engine at {self._pipe.path} did not answer within {QUESTION_SECONDS:g} s")
        return question.answer()
