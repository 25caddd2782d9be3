"""What a request brings, and how its parts are put together as they come."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from frontend.errors import RequestLost
from frontend.wire import Delta, Logprob
from protocol.codec import unpack_int32
from protocol.errors import EngineError
from protocol.messages import FinishReason


@dataclass(slots=True)
class CompletionOutput:
    """One of the `n` outputs of a request."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)  # one per token, where asked
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None  # the stop id or stop string that ended it


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request, all outputs together."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # of the prompt, found in the prefix cache


@dataclass(slots=True)
class RequestOutput:
    """The answer to one prompt. `text`, `token_ids`, `logprobs` and `finish_reason` are those of the first output."""

    prompt: str | None  # None: it came as token ids or as a conversation
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    num_cached_tokens: int = 0

    @property
    def text(self) -> str:
        """Text of the first output."""
        return self.outputs[0].text

    @property
    def token_ids(self) -> list[int]:
        """Token ids of the first output."""
        return self.outputs[0].token_ids

    @property
    def logprobs(self) -> list[Logprob]:
        """Log-probabilities of the first output's tokens, where asked."""
        return self.outputs[0].logprobs

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the first output ended."""
        return self.outputs[0].finish_reason

    @property
    def usage(self) -> Usage:
        """How many tokens were read and written."""
        written = sum(len(output.token_ids) for output in self.outputs)
        return Usage(len(self.prompt_token_ids), written, self.num_cached_tokens)


class Assembly:
    """A request under way on the client's side. Knows no socket; `notify` is called whenever there is news."""

    def __init__(self, request_id: int, n: int, prompt: str | None, stream: bool, notify: Callable[[], None]) -> None:
        self.request_id = request_id
        self.output = RequestOutput(prompt, [], [CompletionOutput(index) for index in range(n)])
        self.unread: deque[Delta] = deque()  # of a stream: what its reader has not seen
        self.error: EngineError | None = None
        self.num_tokens = 0
        self._stream = stream
        self._notify = notify
        self._open = n

    @property
    def done(self) -> bool:
        """Nothing follows: every output ended, or the request failed."""
        return self._open == 0 or self.error is not None

    def accept(self, prompt_token_ids_i32: bytes) -> None:
        """The engine took the prompt; these are its tokens."""
        self.output.prompt_token_ids = unpack_int32(prompt_token_ids_i32).tolist()

    def add(self, delta: Delta) -> None:
        """Takes in a piece of one output."""
        self.num_tokens += len(delta.token_ids)
        if delta.index == 0:  # the outputs after the first find what this one left in the cache
            self.output.num_cached_tokens = delta.num_cached_tokens
        if self._stream:
            self.unread.append(delta)
        else:
            output = self.output.outputs[delta.index]
            output.text += delta.text
            output.token_ids += delta.token_ids
            output.logprobs += delta.logprobs
            output.finish_reason, output.stop_reason = delta.finish_reason, delta.stop_reason
        if delta.finish_reason is not None:
            self._open -= 1
            if delta.finish_reason == "error":
                self.error = RequestLost(delta.message or "the engine failed on this request")
        self._notify()

    def fail(self, error: EngineError) -> None:
        """The request is over, without its answer. Without effect on one that has ended."""
        if not self.done:
            self.error = error
            self._notify()

    def result(self) -> RequestOutput:
        """The whole answer of a request that is done. Raises what it failed with."""
        if self.error is not None:
            raise self.error
        return self.output
