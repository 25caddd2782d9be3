"""The client's side of the wire without its socket: which message belongs to which request."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from frontend.client.outputs import Assembly
from frontend.errors import EngineRecovering, EngineUnavailable, InvalidRequest, Overloaded, RequestLost
from frontend.wire import (
    MAX_FRAME,
    SERVER_MESSAGES,
    WHOLE_CONNECTION,
    WIRE_VERSION,
    Accepted,
    Ask,
    Cancel,
    Delta,
    FrameReader,
    HealthReport,
    Hello,
    Prompt,
    Refused,
    ServerMessage,
    StatsReport,
    Submit,
    TextPrompt,
    TokenPrompt,
    TraceReport,
    Welcome,
    frames,
)
from protocol.codec import encode
from protocol.errors import EngineError, ProtocolError
from protocol.params import SamplingParams

CONNECT_SECONDS = 60.0  # an engine that compiles for the first time takes so long
QUESTION_SECONDS = 30.0  # an engine that is alive answers in milliseconds

Report = HealthReport | StatsReport | TraceReport


def nobody() -> None:
    """Nobody waits."""


@dataclass(slots=True)
class Question:
    """Something asked about the engine, and the answer once it came."""

    notify: Callable[[], None]
    report: Report | None = None
    error: EngineError | None = None

    @property
    def done(self) -> bool:
        """Whether there is an answer, or there will be none."""
        return self.report is not None or self.error is not None

    def answer(self) -> Report:
        """The answer. Raises why there is none."""
        if self.report is None:
            raise self.error or EngineUnavailable("the engine has not answered")
        return self.report

    def fail(self, error: EngineError) -> None:
        """There will be no answer."""
        self.error = error
        self.notify()


class Session:
    """The requests and questions of one connection. What is to be sent waits in here until `take_outgoing`."""

    def __init__(self, notify: Callable[[], None] = nobody) -> None:
        """`notify` is called when the engine said welcome, or the connection is lost."""
        self.welcome: Welcome | None = None
        self.lost: EngineError | None = None
        self._notify = notify
        self._reader = FrameReader()
        self._ids = itertools.count(WHOLE_CONNECTION + 1)
        self._assemblies: dict[int, Assembly] = {}
        self._questions: dict[int, Question] = {}
        self._outgoing: list[bytes] = [encode(Hello(WIRE_VERSION))]

    @property
    def engine(self) -> Welcome:
        """What the engine said of itself. Raises what ended the connection."""
        self._check()
        assert self.welcome is not None
        return self.welcome

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        stream: bool = False,
        cache_salt: str = "",
        notify: Callable[[], None] = nobody,
    ) -> Assembly:
        """A new request with checked parameters. Raises InvalidRequest, or what ended the connection."""
        self._check()
        request_id = next(self._ids)
        try:
            message = encode(Submit(request_id, prompt, params, stream, cache_salt))
        except (UnicodeEncodeError, TypeError) as error:
            raise InvalidRequest(f"the prompt cannot be encoded: {error}", "prompt") from error
        if len(message) > MAX_FRAME // 2:
            raise InvalidRequest(f"the prompt has {len(message)} bytes: no context holds it", "prompt")
        text = prompt.text if isinstance(prompt, TextPrompt) else None
        assembly = Assembly(request_id, params.n, text, stream, notify)
        if isinstance(prompt, TokenPrompt):
            assembly.accept(prompt.token_ids_i32)
        self._assemblies[request_id] = assembly
        self._outgoing.append(message)
        return assembly

    def cancel(self, assembly: Assembly) -> None:
        """Aborts a request; nothing of it is taken in from now on. Without effect on one that has ended."""
        if self._assemblies.pop(assembly.request_id, None) is not None:
            self._outgoing.append(encode(Cancel(assembly.request_id)))
            assembly.fail(RequestLost("the request was cancelled"))

    def ask(self, what: Literal["health", "stats", "trace"], notify: Callable[[], None] = nobody) -> Question:
        """A new question. Raises what ended the connection."""
        self._check()
        request_id, question = next(self._ids), Question(notify)
        self._questions[request_id] = question
        self._outgoing.append(encode(Ask(request_id, what)))
        return question

    def take_outgoing(self) -> bytes:
        """Everything that is to be sent, once."""
        outgoing, self._outgoing = self._outgoing, []
        return frames(outgoing) if self.lost is None else b""

    def feed(self, data: bytes) -> None:
        """Takes in what came from the engine; no bytes mean that it is gone."""
        if not data:
            self.lose(RequestLost("the engine closed the connection: it ended, or was shut down"))
            return
        try:
            for frame in self._reader.feed(data):
                for message in SERVER_MESSAGES.decode(frame):
                    self._on_message(message)
        except ProtocolError as error:
            self.lose(error)

    def lose(self, error: EngineError) -> None:
        """The connection is over, and so is everything that waits. The first reason stands."""
        if self.lost is not None:
            return
        self.lost = error
        for assembly in list(self._assemblies.values()):  # a stream may be collected, and cancelled, at any point
            assembly.fail(error)
        for question in self._questions.values():
            question.fail(error)
        self._assemblies.clear()
        self._questions.clear()
        self._notify()

    def _on_message(self, message: ServerMessage) -> None:
        match message:
            case Delta():
                if (assembly := self._assemblies.get(message.request_id)) is not None:
                    assembly.add(message)
                    if assembly.done:
                        del self._assemblies[message.request_id]
            case Accepted(request_id, prompt_i32):
                if (assembly := self._assemblies.get(request_id)) is not None:
                    assembly.accept(prompt_i32)
            case Refused():
                self._on_refused(message)
            case HealthReport() | StatsReport() | TraceReport():
                if (question := self._questions.pop(message.request_id, None)) is not None:
                    question.report = message
                    question.notify()
            case Welcome():
                self.welcome = message
                self._notify()

    def _on_refused(self, refused: Refused) -> None:
        error = _error(refused)
        if refused.request_id == WHOLE_CONNECTION:
            self.lose(error)
        elif (
            waiting := self._assemblies.pop(refused.request_id, None) or self._questions.pop(refused.request_id, None)
        ) is not None:
            waiting.fail(error)

    def _check(self) -> None:
        if self.lost is not None:
            raise self.lost
        if self.welcome is None:
            raise EngineUnavailable("the client is not connected: use `async with`, or connect() first")


def _error(refused: Refused) -> EngineError:
    match refused.kind:
        case "invalid":
            return InvalidRequest(refused.message, refused.param)
        case "overloaded":
            return Overloaded(refused.message, refused.retry_after)
        case "recovering":
            return EngineRecovering(refused.message)
        case "unavailable":
            return EngineUnavailable(refused.message)
        case "malformed" | "version":
            return ProtocolError(refused.message)
        case "lost":
            return RequestLost(refused.message)
