"""The client without its socket: what is asked of the engine, what is under way, what is to be sent."""

import itertools
import os
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import msgspec

from frontend.client.batch import Batch
from frontend.client.discovery import cannot_connect, find_socket
from frontend.client.embeddings import EmbeddingBatch
from frontend.client.parameters import Params, SamplingFields, checked, checked_salt, merged, sendable
from frontend.client.prompts import Prompt, Prompts, TokenIds, pair, to_wire
from frontend.client.reply import Reply
from frontend.client.requests import StreamedRequest, WholeRequest
from frontend.client.steps import Steps, read_steps
from frontend.errors import DeadlineExceeded, EngineUnavailable, InvalidRequest, Overloaded, RequestLost
from frontend.wire import (
    MAX_FRAME,
    SERVER_MESSAGES,
    WHOLE_CONNECTION,
    WIRE_VERSION,
    Accepted,
    Ask,
    Cancel,
    Conversation,
    Delta,
    Detokenize,
    Detokenized,
    Embed,
    Embedded,
    FrameReader,
    Health,
    HealthReport,
    Hello,
    PromptScored,
    Refused,
    ServerMessage,
    StatsReport,
    StoryReport,
    Submit,
    TextPrompt,
    Tokenize,
    Tokenized,
    TokenPrompt,
    TraceReport,
    Welcome,
    frames,
)
from frontend.wire import Prompt as WirePrompt
from protocol.codec import encode, unpack_int32
from protocol.errors import EngineError, ProtocolError
from protocol.messages import EngineStats, Story
from protocol.params import SamplingParams

CONNECT_SECONDS = 60.0  # an engine that compiles for the first time takes so long
QUESTION_SECONDS = 30.0  # an engine that is alive answers in milliseconds
RECONNECT_SECONDS = 30.0  # a frontend that died is back in one or two, an engine that a service manager starts anew in ten
RETRY_SECONDS = 0.05  # between two attempts

AnyRequest = WholeRequest | StreamedRequest
Report = Health | EngineStats | Steps | tuple[Story, ...] | list[int] | str | Embedded
AnyQuestion = (
    Reply[Health] | Reply[EngineStats] | Reply[Steps] | Reply[tuple[Story, ...]] | Reply[list[int]] | Reply[str] | Reply[Embedded]
)
KindOfRequest = TypeVar("KindOfRequest", WholeRequest, StreamedRequest)
Answer = TypeVar("Answer", Health, EngineStats, Steps, tuple[Story, ...], list[int], str, Embedded)


class Session:
    """One connection. What users ask returns at once, with something to wait for; the faces send, feed and wait."""

    def __init__(self, socket_path: str | os.PathLike[str] | None, reconnect: float = RECONNECT_SECONDS) -> None:
        """Finds the socket. `reconnect`: seconds that an engine is waited for that was there before. Raises InvalidRequest or
        EngineUnavailable as `find_socket` does.
        """
        self.path = find_socket(socket_path)
        self.reconnect = reconnect
        self.greeted = False  # the engine at the other end of this very connection said its welcome
        self.greeting = Reply(Welcome, f"the engine at {self.path} was not ready")
        self.lost: EngineError | None = None
        self._reader = FrameReader()
        self._ids = itertools.count(WHOLE_CONNECTION + 1)
        self._requests: dict[int, AnyRequest] = {}
        self._submitted: dict[int, Submit] = {}  # what these are, to be said again to an engine that has lost them
        self._questions: dict[int, AnyQuestion] = {}
        self._asked: dict[int, bytes] = {}
        self._outgoing: list[bytes] = [encode(Hello(WIRE_VERSION))]

    def merged(self, params: Params, fields: SamplingFields) -> Params | SamplingParams:
        """The parameters with these fields in place of theirs; without parameters, of those that the engine has for such requests.

        Raises TypeError, as any call does, on a keyword that is none.
        """
        known = self.greeting.ready and self.lost is None
        return merged(params, fields, self.greeting.result().defaults.params() if known else SamplingParams())

    def describe(self) -> str:
        """The engine and how things stand with it, for people."""
        if self.lost is not None:
            return f"{self.path}: {self.lost}"
        if not self.greeting.ready:
            return f"{self.path}: not connected yet"
        away = "" if self.greeted else ", waiting for the engine to come back"
        return f"{self.path}: {self.greeting.result().models[0]}, {len(self._requests)} requests under way{away}"

    # what users ask; each raises what ended the connection, or InvalidRequest naming what is wrong, before anything is sent

    def generate(
        self,
        prompts: Prompts,
        params: SamplingParams | Sequence[SamplingParams] | None,
        cache_salt: str = "",
        *,
        progress: bool | None,
    ) -> Batch:
        """Answers to several prompts. `progress=None`: with a bar if there is a terminal."""
        vocab_size, salt = self._engine.vocab_size, checked_salt(cache_salt)
        known: dict[int, SamplingParams] = {}  # checked once, also where one object serves a thousand prompts
        wanted: list[tuple[WirePrompt, SamplingParams]] = []
        for prompt, given in pair(prompts, params):
            if id(given) not in known:
                known[id(given)] = checked(given, vocab_size)
            wanted.append((to_wire(prompt), known[id(given)]))
        return Batch(lambda prompt, params: self._request(WholeRequest, prompt, params, salt), wanted, show_progress=progress)

    def submit(self, prompt: Prompt | Conversation, params: SamplingParams | None, cache_salt: str) -> WholeRequest:
        """One whole answer."""
        return self._request(WholeRequest, to_wire(prompt), checked(params, self._engine.vocab_size), checked_salt(cache_salt))

    def stream(self, prompt: Prompt | Conversation, params: SamplingParams | None, cache_salt: str) -> StreamedRequest:
        """One answer, piece by piece."""
        return self._request(StreamedRequest, to_wire(prompt), checked(params, self._engine.vocab_size), checked_salt(cache_salt))

    def health(self) -> Reply[Health]:
        """Whether the engine serves."""
        return self._ask("health", Health)

    def stats(self) -> Reply[EngineStats]:
        """Queue, workers and counters."""
        return self._ask("stats", EngineStats)

    def trace(self) -> Reply[Steps]:
        """The latest steps."""
        return self._ask("trace", Steps)

    def story(self, request: str) -> Reply[tuple[Story, ...]]:
        """How requests came to stand where they stand."""
        return self._ask("story", tuple, sendable(request, "request"))

    def tokenize(self, prompt: Prompt | Conversation, *, add_special_tokens: bool) -> Reply[list[int]]:
        """The token ids of a text or conversation."""
        wanted = to_wire(prompt, add_special_tokens)
        return self._put(lambda request_id: Tokenize(request_id, wanted), list)

    def detokenize(self, token_ids: TokenIds) -> Reply[str]:
        """The text of token ids."""
        wanted = to_wire(token_ids)
        if not isinstance(wanted, TokenPrompt):
            raise InvalidRequest("tokens must be a list of token ids", "tokens")
        return self._put(lambda request_id: Detokenize(request_id, wanted.token_ids_i32), str)

    def embed(
        self,
        prompts: Prompts,
        *,
        dimensions: int | None = None,
        truncate_prompt_tokens: int | None = None,
        priority: int = 0,
        cache_salt: str = "",
    ) -> EmbeddingBatch:
        """Embeddings of several prompts."""
        self._check()
        wanted: list[TextPrompt | TokenPrompt] = []
        for prompt, _ in pair(prompts, None):
            one = to_wire(prompt)
            if isinstance(one, Conversation):
                raise InvalidRequest("prompts must be texts or lists of token ids", "prompts")
            wanted.append(one)
        numbers = {"dimensions": dimensions, "truncate_prompt_tokens": truncate_prompt_tokens, "priority": priority}
        for name, value in numbers.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not -(2**31) <= value < 2**31):
                raise InvalidRequest(f"{name} must be a whole number, not {value!r:.50}", name)
        salt = checked_salt(cache_salt)

        def ask(some: list[TextPrompt | TokenPrompt]) -> Reply[Embedded]:
            def make(request_id: int) -> Embed:
                return Embed(request_id, some, dimensions, truncate_prompt_tokens, priority, salt)

            return self._put(make, Embedded, aborts=True)

        return EmbeddingBatch(ask, wanted)

    # for the faces

    def take_outgoing(self) -> bytes:
        """Everything that is to be sent, once."""
        outgoing, self._outgoing = self._outgoing, []
        return frames(outgoing) if self.lost is None else b""

    def feed(self, data: bytes) -> None:
        """Takes in what came from the engine. What came may leave something to be sent."""
        try:
            for frame in self._reader.feed(data):
                for message in SERVER_MESSAGES.decode(frame):
                    self._on_message(message)
        except ProtocolError as error:
            self.lose(error)
        except (IndexError, ValueError) as error:
            self.lose(ProtocolError(f"the engine's answer makes no sense: {error!r}"))

    def broke(self) -> bool:
        """The connection ended. Returns whether to connect again: what is under way then goes on where it stands."""
        if self.lost is not None:
            return False
        if not self.greeting.ready or not self.reconnect:
            self.lose(RequestLost("the engine closed the connection: it ended, or was shut down"))
            return False
        self.greeted = False
        self._reader = FrameReader()
        self._outgoing = [encode(Hello(WIRE_VERSION))]
        return True

    def give_up(self) -> None:
        """The engine did not come back."""
        self.lose(RequestLost(f"the engine closed the connection, and none answered at {self.path} within {self.reconnect:g} s"))

    def cannot_connect(self, error: OSError, seconds: float | None) -> EngineError:
        """What to raise when there is no connection, or no greeting in so many seconds."""
        if isinstance(error, TimeoutError) and seconds is not None:
            return self.greeting.late(seconds)
        return cannot_connect(self.path, error)

    def close(self) -> None:
        """The user has had enough."""
        self.lose(RequestLost("the client is closed"))

    def lose(self, error: EngineError) -> None:
        """The connection is over, and so is everything that waits. The first reason stands."""
        if self.lost is not None:
            return
        self.lost = error
        early = EngineUnavailable(f"the engine at {self.path} ended before it was ready")
        self.greeting.fail(early if isinstance(error, RequestLost) else error)
        for waiting in (*self._requests.values(), *self._questions.values()):  # copied: a stream may be collected at any point
            waiting.fail(error)
        for kept in (self._requests, self._submitted, self._questions, self._asked):
            kept.clear()

    # messages

    def _on_message(self, message: ServerMessage) -> None:
        match message:
            case Delta():
                if (request := self._requests.get(message.request_id)) is not None:
                    request.add(message)
                    if request.ended:
                        self._forget(message.request_id)
            case Accepted(request_id):
                if (request := self._requests.get(request_id)) is not None:
                    request.accept(message)
            case PromptScored(request_id):
                if (request := self._requests.get(request_id)) is not None:
                    request.score(message)
            case Refused(request_id):
                error = _error(message)
                if request_id == WHOLE_CONNECTION:
                    self.lose(error)
                elif waiting := self._forget(request_id):
                    waiting.fail(error)
            case HealthReport(request_id, report) | StatsReport(request_id, report):
                self._on_report(request_id, report)
            case TraceReport(request_id):
                self._on_report(request_id, read_steps(message))
            case StoryReport(request_id, stories):
                self._on_report(request_id, stories)
            case Tokenized(request_id, token_ids_i32):
                self._on_report(request_id, unpack_int32(token_ids_i32).tolist())
            case Embedded(request_id):
                self._on_report(request_id, message)
            case Detokenized(request_id, text):
                self._on_report(request_id, text)
            case Welcome():
                self._on_welcome(message)

    def _request(
        self, kind: type[KindOfRequest], prompt: WirePrompt, params: SamplingParams, cache_salt: str = ""
    ) -> KindOfRequest:
        self._check()
        request = kind(next(self._ids), prompt, params.n, self._withdraw)
        param = "messages" if isinstance(prompt, Conversation) else "prompt"
        submit = Submit(request.request_id, prompt, params, kind.streams, cache_salt)
        try:
            message = encode(submit)
        except (UnicodeEncodeError, TypeError) as error:
            raise InvalidRequest(f"the {param} cannot be encoded: {error}", param) from error
        if len(message) > MAX_FRAME // 2:
            raise InvalidRequest(f"the {param} takes {len(message)} bytes: no context holds it", param)
        self._requests[request.request_id], self._submitted[request.request_id] = request, submit
        self._say(message)
        return request

    def _on_welcome(self, welcome: Welcome) -> None:
        first = not self.greeting.ready
        if first:
            self.greeting.take(welcome)
        elif welcome != self.greeting.result():
            self.lose(RequestLost(f"another engine answers at {self.path} than before: it serves {', '.join(welcome.models)}"))
            return
        self.greeted = True
        for request_id, submit in self._submitted.items():  # in their order, as ids must rise
            self._say(encode(msgspec.structs.replace(submit, resumed=self._requests[request_id].progress())))
        for question in self._asked.values():
            self._say(question)

    def _say(self, message: bytes) -> None:
        """Says it now. Where the engine is waited for, it is said with all that is under way, behind the welcome."""
        if self.greeted:
            self._outgoing.append(message)

    def _forget(self, request_id: int) -> AnyRequest | AnyQuestion | None:
        """It is over."""
        self._submitted.pop(request_id, None)
        self._asked.pop(request_id, None)
        return self._requests.pop(request_id, None) or self._questions.pop(request_id, None)

    def _withdraw(self, request_id: int) -> None:
        """Aborts a request; nothing of it is taken in from now on. Without effect on one that has ended."""
        if (request := self._forget(request_id)) is not None:
            self._say(encode(Cancel(request_id)))
            request.fail(RequestLost("the request was cancelled"))

    def _on_report(self, request_id: int, report: Report) -> None:
        question = self._forget(request_id)
        if isinstance(question, Reply):
            question.take(report)

    def _ask(self, what: Literal["health", "stats", "trace", "story"], kind: type[Answer], subject: str = "") -> Reply[Answer]:
        return self._put(lambda request_id: Ask(request_id, what, subject), kind)

    def _put(
        self, make: Callable[[int], Ask | Tokenize | Detokenize | Embed], kind: type[Answer], *, aborts: bool = False
    ) -> Reply[Answer]:
        """`aborts`: the engine is to be told when nobody wants the answer any more."""
        self._check()
        request_id = next(self._ids)
        overdue = f"the engine at {self.path} did not answer"

        def forget() -> None:
            if self._forget(request_id) is not None and aborts:
                self._say(encode(Cancel(request_id)))

        question = Reply(kind, overdue, forget)
        try:
            message = encode(make(request_id))
        except (UnicodeEncodeError, TypeError) as error:
            raise InvalidRequest(f"the prompt cannot be encoded: {error}", "prompt") from error
        self._questions[request_id], self._asked[request_id] = question, message
        self._say(message)
        return question

    @property
    def _engine(self) -> Welcome:
        self._check()
        return self.greeting.result()

    def _check(self) -> None:
        if self.lost is not None:
            raise self.lost.with_traceback(None)  # raised again and again, it would grow
        if not self.greeting.ready:
            raise EngineUnavailable("the client is not connected: use `async with`, or connect() first")


def _error(refused: Refused) -> EngineError:
    match refused.kind:
        case "invalid":
            return InvalidRequest(refused.message, refused.param, refused.code)
        case "overloaded":
            return Overloaded(refused.message, refused.retry_after)
        case "unavailable":
            return EngineUnavailable(refused.message)
        case "malformed" | "version":
            return ProtocolError(refused.message)
        case "lost":
            return RequestLost(refused.message)
        case "late":
            return DeadlineExceeded(refused.message)
