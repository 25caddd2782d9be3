"""Requests under way, and how their answers are put together from what comes."""

from abc import abstractmethod
from array import array
from collections import deque
from collections.abc import Callable
from typing import ClassVar

from frontend.client.awaited import Answer, Awaited
from frontend.client.outputs import CompletionOutput, RequestOutput
from frontend.errors import DeadlineExceeded, RequestLost
from frontend.wire import Accepted, Delta, Logprob, Prompt, PromptScored, Resumed, ResumedOutput, TextPrompt, TokenPrompt
from protocol.codec import unpack_float32, unpack_int32
from protocol.errors import EngineError


class _Came:
    """How far one output is."""

    __slots__ = ("reasoning", "text", "token_ids", "tool_calls")

    def __init__(self) -> None:
        self.token_ids = array("i")
        self.text = 0  # characters
        self.reasoning = 0  # characters
        self.tool_calls = 0

    def add(self, delta: Delta) -> None:
        self.token_ids.extend(delta.token_ids)
        self.text += len(delta.text)
        self.reasoning += len(delta.reasoning)
        self.tool_calls += len(delta.tool_calls)

    def describe(self) -> ResumedOutput:
        return ResumedOutput(self.token_ids.tobytes(), self.text, self.reasoning, self.tool_calls)


class Request(Awaited[Answer]):
    """What the two kinds share."""

    streams: ClassVar[bool]

    def __init__(self, request_id: int, prompt: Prompt, n: int, withdraw: Callable[[int], None]) -> None:
        """`withdraw` aborts the request of this id."""
        super().__init__()
        self.request_id = request_id
        self._withdraw = withdraw
        self._open = n  # outputs that have not ended
        self._came: list[_Came | None] = [_Came() for _ in range(n)]
        self._prompt_i32 = b""
        self._seed: int | None = None

    def progress(self) -> Resumed:
        """What an engine has to know that is to go on with it."""
        return Resumed(self._prompt_i32, self._seed, tuple(None if came is None else came.describe() for came in self._came))

    @property
    def ended(self) -> bool:
        """Nothing follows: every output ended, or the request failed."""
        return self._open == 0 or self.error is not None

    def describe(self) -> str:
        """Its number on this connection and how it stands, for people."""
        return f"{self.request_id}: {self.error or ('ended' if self.ended else 'under way')}"

    def accept(self, accepted: Accepted) -> None:
        """The engine took the prompt."""
        self._prompt_i32 = accepted.prompt_i32
        self._seed = accepted.seed if self._seed is None else self._seed

    def score(self, scored: PromptScored) -> None:
        """Log-probabilities of the prompt came."""

    def add(self, delta: Delta) -> None:
        """Takes in a piece of one output."""
        self._take(delta)
        if (came := self._came[delta.index]) is not None:
            came.add(delta)
        if delta.finish_reason is not None:
            self._open -= 1
            self._came[delta.index] = None
        if delta.finish_reason == "error":
            self.error = RequestLost(delta.message or "the engine failed on this request")
        self.notify()

    def fail(self, error: EngineError) -> None:
        """It is over, without its answer. Without effect on one that has ended."""
        if not self.ended:
            self.error = error
            self.notify()

    def late(self, seconds: float) -> DeadlineExceeded:
        """It is aborted then."""
        self.close()
        return DeadlineExceeded(f"no answer within {seconds:g} s; the request was aborted")

    def close(self) -> None:
        """Aborts it. Without effect on one that has ended."""
        self._withdraw(self.request_id)

    @abstractmethod
    def _take(self, delta: Delta) -> None:
        """Keeps a piece."""


class WholeRequest(Request[RequestOutput]):
    """A request whose whole answer is wanted."""

    streams = False

    def __init__(self, request_id: int, prompt: Prompt, n: int, withdraw: Callable[[int], None]) -> None:
        super().__init__(request_id, prompt, n, withdraw)
        text = prompt.text if isinstance(prompt, TextPrompt) else None
        self._output = RequestOutput(text, [], [CompletionOutput(index) for index in range(n)])
        if isinstance(prompt, TokenPrompt):
            self._output.prompt_token_ids = unpack_int32(prompt.token_ids_i32).tolist()

    @property
    def ready(self) -> bool:
        """It has ended."""
        return self.ended

    @property
    def num_tokens(self) -> int:
        """Output tokens so far."""
        return sum(len(output.token_ids) for output in self._output.outputs)

    def result(self) -> RequestOutput:
        """The whole answer."""
        if self.error is not None:
            raise self.error
        return self._output

    def accept(self, accepted: Accepted) -> None:
        """Part of the answer."""
        super().accept(accepted)
        self._output.max_tokens_clipped = accepted.max_tokens_clipped
        if accepted.prompt_i32:
            self._output.prompt_token_ids = unpack_int32(accepted.prompt_i32).tolist()

    def score(self, scored: PromptScored) -> None:
        """Part of the answer."""
        shape, best = (-1, 1 + scored.candidates), slice(1, None)
        logprobs = unpack_float32(scored.logprobs_f32).reshape(shape).tolist()
        ranks = unpack_int32(scored.ranks_i32).reshape(shape).tolist()
        self._output.prompt_logprobs = [None] + [
            Logprob(token_id, values[0], row[0], list(zip(row[best], values[best], strict=True)))
            for token_id, row, values in zip(self._output.prompt_token_ids[1:], ranks, logprobs, strict=True)
        ]

    def _take(self, delta: Delta) -> None:
        output = self._output.outputs[delta.index]
        output.text += delta.text
        output.token_ids += delta.token_ids
        output.logprobs += delta.logprobs
        output.reasoning += delta.reasoning
        output.tool_calls += delta.tool_calls
        output.finish_reason, output.stop_reason = delta.finish_reason, delta.stop_reason
        if delta.index == 0:  # the outputs after the first find what this one left in the cache
            self._output.num_cached_tokens = delta.num_cached_tokens


class StreamedRequest(Request[Delta | None]):
    """A request whose answer is wanted piece by piece: each result is the next one, None at the end."""

    streams = True

    def __init__(self, request_id: int, prompt: Prompt, n: int, withdraw: Callable[[int], None]) -> None:
        super().__init__(request_id, prompt, n, withdraw)
        self._unread: deque[Delta] = deque()
        self._over = False  # for the reader: closed, or read to the end

    @property
    def ready(self) -> bool:
        """There is a piece, or the end."""
        return bool(self._unread) or self.ended or self._over

    def result(self) -> Delta | None:
        """The next piece. What it failed with is raised once, behind the last piece."""
        if self._unread and not self._over:
            return self._unread.popleft()
        if self.error is not None and not self._over:
            self._over = True
            raise self.error
        return None

    def close(self) -> None:
        """Nothing follows."""
        self._over = True
        super().close()

    def _take(self, delta: Delta) -> None:
        self._unread.append(delta)
