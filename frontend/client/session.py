"""A connection's conversation with the engine without its socket: bytes in, bytes out. Both clients are a socket around it."""

import itertools
from collections.abc import Callable
from typing import Literal

from frontend.client.outputs import RequestOutput, join
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
    TokenPrompt,
    TraceReport,
    Welcome,
    frames,
)
from protocol.codec import encode, unpack_int32
from protocol.errors import EngineError, ProtocolError
from protocol.params import SamplingParams

Report = HealthReport | StatsReport | TraceReport

_HEADROOM = 64  # bytes of a frame that are not its message


class Waiting:
    """Something that the engine owes. `wake`, where set, is called whenever something came."""

    __slots__ = ("error", "request_id", "wake")

    def __init__(self, request_id: int) -> None:
        self.request_id = request_id
        self.error: EngineError | None = None
        self.wake: Callable[[], None] | None = None

    def fail(self, error: EngineError) -> None:
        """Nothing more will come."""
        self.error = error
        if self.wake is not None:
            self.wake()


class Question(Waiting):
    """A question about the engine."""

    __slots__ = ("report",)

    def __init__(self, request_id: int) -> None:
        super().__init__(request_id)
        self.report: Report | None = None

    @property
    def done(self) -> bool:
        """Whether it was answered, or never will be."""
        return self.report is not None or self.error is not None


class Request(Waiting):
    """A prompt under way. `deltas` holds all that came; each output's last one has a finish reason."""

    __slots__ = ("_left", "deltas", "on_end", "params", "prompt", "prompt_token_ids", "taken")

    def __init__(self, request_id: int, prompt: Prompt, params: SamplingParams) -> None:
        super().__init__(request_id)
        self.prompt = prompt
        self.params = params
        self.prompt_token_ids: list[int] | None = None
        self.deltas: list[Delta] = []
        self.taken = 0  # deltas that the user has seen
        self.on_end: Callable[[Request], None] | None = None
        self._left = params.n

    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        return self._left == 0 or self.error is not None

    def add(self, delta: Delta) -> None:
        """The session's: one more delta."""
        self.deltas.append(delta)
        if delta.finish_reason is not None:
            self._left -= 1
            if delta.finish_reason == "error" and self.error is None:
                self.error = RequestLost(delta.message or "the engine failed on this request")
            if self._left == 0 and self.on_end is not None:
                self.on_end(self)
        if self.wake is not None:
            self.wake()

    def close(self) -> None:
        """The session's: cancelled. What came stays; an output without an end counts as aborted."""
        self._left = 0
        if self.wake is not None:
            self.wake()

    def next_delta(self) -> Delta | None:
        """The first delta that was not taken yet."""
        if self.taken == len(self.deltas):
            return None
        self.taken += 1
        return self.deltas[self.taken - 1]

    def output(self) -> RequestOutput:
        """The whole answer. Raises what the request failed with."""
        if self.error is not None:
            raise self.error
        count, with_logprobs = self.params.n, self.params.logprobs is not None
        parts: list[list[Delta]] = [self.deltas] if count == 1 else [[] for _ in range(count)]
        if count > 1:
            for delta in self.deltas:
                parts[delta.index].append(delta)
        text = getattr(self.prompt, "text", None)
        prompt_token_ids = self.prompt_token_ids
        if prompt_token_ids is None:
            prompt_token_ids = unpack_int32(self.prompt.token_ids_i32).tolist() if isinstance(self.prompt, TokenPrompt) else []
        outputs = [join(index, part, with_logprobs=with_logprobs) for index, part in enumerate(parts)]
        return RequestOutput(text, prompt_token_ids, outputs, max((delta.num_cached_tokens for delta in self.deltas), default=0))


class Session:
    """Numbers requests, remembers which are open, and hands each what comes for it."""

    def __init__(self) -> None:
        self.welcome: Welcome | None = None
        self.lost: EngineError | None = None  # set once the connection is of no use any more
        self._ids = itertools.count(WHOLE_CONNECTION + 1)
        self._open: dict[int, Request | Question] = {}
        self._reader = FrameReader()
        self._outgoing = [encode(Hello(WIRE_VERSION))]

    def submit(self, prompt: Prompt, params: SamplingParams, *, stream: bool, cache_salt: str = "") -> Request:
        """Opens a request. Raises InvalidRequest on what cannot be sent, EngineUnavailable when the connection is lost."""
        self._check_open()
        request = Request(next(self._ids), prompt, params)
        try:
            message = encode(Submit(request.request_id, prompt, params, stream, cache_salt))
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"the prompt is no valid Unicode text: {error}", "prompt") from error
        if len(message) > MAX_FRAME - _HEADROOM:
            raise InvalidRequest(f"the prompt has {len(message)} bytes; at most {MAX_FRAME - _HEADROOM} can be sent", "prompt")
        self._open[request.request_id] = request
        self._outgoing.append(message)
        return request

    def cancel(self, request: Request) -> None:
        """Aborts a request; nothing more comes for it. Without effect on one that has ended."""
        if self._open.pop(request.request_id, None) is not None:
            self._outgoing.append(encode(Cancel(request.request_id)))
            request.close()

    def ask(self, what: Literal["health", "stats", "trace"]) -> Question:
        """Opens a question. Raises EngineUnavailable when the connection is lost."""
        self._check_open()
        question = Question(next(self._ids))
        self._open[question.request_id] = question
        self._outgoing.append(encode(Ask(question.request_id, what)))
        return question

    def forget(self, question: Question) -> None:
        """Nobody waits for this answer any more."""
        self._open.pop(question.request_id, None)

    def take_outgoing(self) -> bytes:
        """Bytes to send, framed; each is returned once."""
        outgoing, self._outgoing = self._outgoing, []
        return frames(outgoing)

    def feed(self, data: bytes) -> None:
        """Takes bytes from the engine. What they mean for the connection as a whole is in `welcome` and `lost` afterwards."""
        try:
            for frame in self._reader.feed(data):
                for message in SERVER_MESSAGES.decode(frame):
                    self._on_message(message)
        except ProtocolError as error:
            self.lose(ProtocolError(f"the engine sent what this client does not understand: {error}"))

    def lose(self, reason: EngineError) -> None:
        """The connection is gone: open requests are lost, new ones are refused with `reason`."""
        if self.lost is not None:
            return
        self.lost = reason
        waiting, self._open = list(self._open.values()), {}
        for one in waiting:
            one.fail(RequestLost(f"the answer is incomplete: {reason}"))

    def _check_open(self) -> None:
        if self.lost is not None:
            raise self.lost

    def _on_message(self, message: ServerMessage) -> None:
        match message:
            case Delta(request_id):
                request = self._open.get(request_id)
                if isinstance(request, Request):
                    request.add(message)
                    if request.done:
                        self._open.pop(request_id, None)
            case Accepted(request_id, prompt_i32):
                request = self._open.get(request_id)
                if isinstance(request, Request):
                    request.prompt_token_ids = unpack_int32(prompt_i32).tolist()
            case Refused():
                self._on_refused(message)
            case Welcome():
                self.welcome = message
            case HealthReport() | StatsReport() | TraceReport():
                question = self._open.pop(message.request_id, None)
                if isinstance(question, Question):
                    question.report = message
                    if question.wake is not None:
                        question.wake()

    def _on_refused(self, refused: Refused) -> None:
        error = _error(refused)
        if refused.request_id == WHOLE_CONNECTION:
            self.lose(error)
        elif (waiting := self._open.pop(refused.request_id, None)) is not None:
            waiting.fail(error)


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
        case "lost":
            return RequestLost(refused.message)
        case "version" | "malformed":
            return ProtocolError(refused.message)
