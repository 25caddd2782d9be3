"""The synchronous client. It has no threads: whenever somebody waits, all requests of the connection move on."""

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Literal

from frontend.client import prompts as user_prompts
from frontend.client.connection import Connection
from frontend.client.discovery import find_socket
from frontend.client.outputs import RequestOutput
from frontend.client.progress import progress_bar
from frontend.client.prompts import AnyPrompt
from frontend.client.session import Report, Request, Session
from frontend.errors import DeadlineExceeded, EngineUnavailable
from frontend.trace.steps import Steps, from_records
from frontend.wire import Delta, Health, HealthReport, Prompt, StatsReport, TraceReport
from protocol.clock import now
from protocol.messages import EngineStats
from protocol.params import SamplingParams

IN_FLIGHT = 4096  # outputs of one `generate`: more than the workers of a host run at a time, fewer than the engine takes


class Handle:
    """A request under way. Iterating yields its deltas as they come; `result` waits for the whole answer."""

    def __init__(self, client: "Client", request: Request) -> None:
        self._client = client
        self._request = request

    @property
    def done(self) -> bool:
        """Whether the answer is complete, failed or cancelled, as far as was read from the socket."""
        return self._request.done

    def result(self, timeout: float | None = None) -> RequestOutput:
        """The whole answer. After `timeout` seconds the request is aborted and DeadlineExceeded raised.

        Raises what the engine refused it with. A cancelled request returns what had come, with the finish reason "abort".
        """
        self._client._wait(self._request, _deadline(timeout))
        return self._request.output()

    def cancel(self) -> None:
        """Aborts the request. Idempotent, and without effect on one that has ended."""
        self._client._cancel(self._request)

    def __iter__(self) -> Iterator[Delta]:
        return self

    def __next__(self) -> Delta:
        if (delta := self._client._next_delta(self._request, None)) is None:
            raise StopIteration
        return delta


class Client:
    """Connection to a running engine. Not for use by two threads at once: give each its own.

    `socket`: path or `unix:///path`; None: $ENGINE_SOCKET, then the default path. Raises EngineUnavailable when nobody answers
    there within `connect_timeout` seconds; an engine that is still starting answers once it is ready.
    """

    def __init__(self, socket: str | os.PathLike[str] | None = None, *, connect_timeout: float = 60.0) -> None:
        self._session = Session()
        self._connection = Connection(find_socket(socket), self._session, connect_timeout)

    def generate(
        self,
        prompts: AnyPrompt | Sequence[AnyPrompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool | None = None,
        add_special_tokens: bool = True,
        cache_salt: str = "",
    ) -> list[RequestOutput]:
        """Answers to prompts, each text or token ids, in order. `params`: one for all, or one for each.

        `progress`: whether to draw a bar; None: on a terminal. The first error ends the whole call, the others are aborted.
        """
        asked = user_prompts.as_list(prompts)
        sent = [user_prompts.from_user(prompt, add_special_tokens) for prompt in asked]
        todo = deque(zip(sent, user_prompts.params_of_each(params, len(sent)), strict=True))
        running: deque[Request] = deque()
        outputs: list[RequestOutput] = []
        in_flight = 0
        with progress_bar(len(sent), progress) as ended:
            try:
                while todo or running:
                    while todo and (in_flight == 0 or in_flight + todo[0][1].n <= IN_FLIGHT):
                        prompt, own = todo.popleft()
                        running.append(self._session.submit(prompt, own, stream=False, cache_salt=cache_salt))
                        running[-1].on_end = ended
                        in_flight += own.n
                    self._wait(running[0], None)
                    request = running.popleft()
                    in_flight -= request.params.n
                    try:
                        outputs.append(request.output())
                    except Exception as error:
                        error.add_note(f"in the answer to prompt {len(outputs)} of {len(sent)}, counted from 0")
                        raise
            finally:
                for request in running:
                    self._cancel(request)
        return outputs

    def stream(
        self,
        prompt: AnyPrompt,
        params: SamplingParams | None = None,
        *,
        timeout: float | None = None,
        add_special_tokens: bool = True,
        cache_salt: str = "",
    ) -> Iterator[Delta]:
        """The answer as it comes. Leaving the loop aborts the request. `timeout`: seconds for the whole answer."""
        return self._deltas(user_prompts.from_user(prompt, add_special_tokens), params, cache_salt, timeout)

    def submit(
        self,
        prompt: AnyPrompt,
        params: SamplingParams | None = None,
        *,
        stream: bool = False,
        add_special_tokens: bool = True,
        cache_salt: str = "",
    ) -> Handle:
        """Starts a request and returns at once. `stream=True` where the handle will be iterated."""
        return Handle(self, self._open(user_prompts.from_user(prompt, add_special_tokens), params, stream, cache_salt))

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        params: SamplingParams | None = None,
        *,
        timeout: float | None = None,
        continue_final_message: bool = False,
        cache_salt: str = "",
    ) -> RequestOutput:
        """The assistant's answer to a conversation: messages with "role" and "content", through the model's own template."""
        sent = user_prompts.conversation(messages, continue_final_message)
        return Handle(self, self._open(sent, params, False, cache_salt)).result(timeout)

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, str]],
        params: SamplingParams | None = None,
        *,
        timeout: float | None = None,
        continue_final_message: bool = False,
        cache_salt: str = "",
    ) -> Iterator[Delta]:
        """The same as it comes. Leaving the loop aborts the request."""
        return self._deltas(user_prompts.conversation(messages, continue_final_message), params, cache_salt, timeout)

    def health(self, timeout: float | None = 10.0) -> Health:
        """Whether the engine serves, and with how many workers."""
        report = self._ask("health", timeout)
        assert isinstance(report, HealthReport)
        return report.health

    def stats(self, timeout: float | None = 10.0) -> EngineStats:
        """The scheduler's statistics."""
        report = self._ask("stats", timeout)
        assert isinstance(report, StatsReport)
        return report.stats

    def trace(self, timeout: float | None = 30.0) -> Steps:
        """The engine's recent steps."""
        report = self._ask("trace", timeout)
        assert isinstance(report, TraceReport)
        return from_records(report.records)

    def close(self) -> None:
        """Closes the connection, which aborts what still runs."""
        self._session.lose(EngineUnavailable("this client was closed"))
        self._connection.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _open(self, prompt: Prompt, params: SamplingParams | None, stream: bool, cache_salt: str) -> Request:
        request = self._session.submit(prompt, user_prompts.checked(params), stream=stream, cache_salt=cache_salt)
        self._connection.flush()  # the engine shall begin now, not when somebody waits
        return request

    def _deltas(self, prompt: Prompt, params: SamplingParams | None, cache_salt: str, timeout: float | None) -> Iterator[Delta]:
        deadline = _deadline(timeout)
        request = self._open(prompt, params, True, cache_salt)
        try:
            while (delta := self._next_delta(request, deadline)) is not None:
                yield delta
        finally:
            self._cancel(request)

    def _next_delta(self, request: Request, deadline: float | None) -> Delta | None:
        while (delta := request.next_delta()) is None:
            if request.error is not None:
                raise request.error
            if request.done:
                return None
            self._turn(request, deadline)
        return delta

    def _wait(self, request: Request, deadline: float | None) -> None:
        while not request.done:
            self._turn(request, deadline)

    def _turn(self, request: Request, deadline: float | None) -> None:
        if not self._connection.turn(deadline):
            self._cancel(request)
            raise DeadlineExceeded("the answer did not come in time; the request was aborted")

    def _cancel(self, request: Request) -> None:
        self._session.cancel(request)
        if self._session.lost is None:
            self._connection.flush()

    def _ask(self, what: Literal["health", "stats", "trace"], timeout: float | None) -> Report:
        question, deadline = self._session.ask(what), _deadline(timeout)
        while question.report is None:
            if question.error is not None:
                raise question.error
            if not self._connection.turn(deadline):
                self._session.forget(question)
                raise DeadlineExceeded(f"the engine did not answer within {timeout} s")
        return question.report


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else now() + timeout
