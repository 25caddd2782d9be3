"""The tokens of one request as they come from the scheduler, for whoever reads them."""

import asyncio
from array import array
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from frontend.errors import DeadlineExceeded
from frontend.server.measures import Timeline
from frontend.server.prompt_scores import TakesScores
from frontend.server.turns import OneByOne
from protocol.errors import EngineError
from protocol.messages import AddRequest, Finished, FinishReason, TopLogprobs


@dataclass(slots=True)
class TokenDelta:
    """Tokens of one request that came since the last delta. The one with a finish reason is the last."""

    token_ids: list[int]
    logprobs: list[TopLogprobs]  # one per token, where asked
    finish_reason: FinishReason | None = None
    stop_token_id: int = -1
    num_cached_tokens: int = 0  # of the prompt; the same in each delta
    message: str = ""
    unsatisfiable: bool = False  # see Finished


_AT_A_TURN = 16  # tokens with their candidates: some milliseconds until they are written


class Aborts(Protocol):
    """The journal, as a request sees it."""

    turns: OneByOne  # of those whose tokens come with candidates, since these are many times the work

    def abort(self, generation: "Generation", reason: FinishReason) -> None:
        """Forgets a request and tells the scheduler."""


class Generation:
    """One request in the engine: an async iterator of TokenDelta. Tokens merge while nobody reads.

    It keeps what the scheduler was told and every token that came, so that another scheduler can be told the same and goes on.
    It raises what `Router.fail_all` was given, behind the tokens that came before.
    """

    __slots__ = (
        "_error",
        "_expiry",
        "_finished",
        "_journal",
        "_known",
        "_logprobs",
        "_over",
        "_request",
        "_taken",
        "_tokens",
        "_waiter",
        "lacks_tokens",
        "length",
        "num_cached_tokens",
        "request_id",
        "resumed",
        "scores",
        "timeline",
    )

    def __init__(
        self,
        journal: Aborts,
        request: AddRequest,
        timeline: Timeline,
        scores: TakesScores | None = None,
        known: Iterable[int] = (),
    ) -> None:
        """`request`: as the scheduler is told of it, without output. `scores`: what takes those of the prompt. `known`: output that
        came before; the first delta is of it."""
        self.request_id = request.request_id
        self.resumed = False  # it was told again, so that what the scheduler says of its beginning is not of the whole
        self.lacks_tokens = False  # some were lost on the way, and what comes behind them is not believed until they are here
        self.timeline = timeline
        self.scores = scores
        self.num_cached_tokens = 0  # of the prompt, known with the first token
        self._journal = journal
        self._request = request
        self._tokens = array("i", known)  # all that came
        self._known = len(self._tokens)
        self.length = request.num_prompt_tokens + self._known  # tokens of the prompt, and those that came
        self._taken = 0  # of these, given to the reader
        self._logprobs: list[TopLogprobs] = []
        self._finished: Finished | None = None
        self._error: EngineError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._over = False

    def __aiter__(self) -> AsyncIterator[TokenDelta]:
        return self

    async def __anext__(self) -> TokenDelta:
        if self._over:
            raise StopAsyncIteration
        while self._taken == len(self._tokens) and self._finished is None:  # `has_news`, without a call for each token
            if self._error is not None:
                self._over = True
                raise self._error.with_traceback(None)  # the error is shared, its traceback is not
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
            if self._over:
                raise StopAsyncIteration
        if self._logprobs:
            await self._journal.turns.turn()
            if self._over:
                raise StopAsyncIteration
        return self.take()

    @property
    def has_news(self) -> bool:
        """Whether there is a delta that nobody has."""
        return self._taken < len(self._tokens) or self._finished is not None

    def expire_after(self, seconds: float) -> None:
        """Aborts it then, unless it has ended: behind the tokens that came, the reader gets DeadlineExceeded."""
        late = DeadlineExceeded(f"the answer was not complete within the {seconds:g} s of its timeout; the request was aborted")
        self._expiry = asyncio.get_running_loop().call_later(seconds, self._expire, late)

    def _expire(self, late: DeadlineExceeded) -> None:
        if not self._over and self._finished is None:
            self._journal.abort(self, "abort")
            self.fail(late)
            self.wake()

    def cancel(self, reason: FinishReason = "abort") -> None:
        """Aborts the request; nothing follows. Idempotent, and without effect on one that has ended. `reason`: why, in measures."""
        if self._over:
            return
        self._over = True
        if self._finished is None:
            self._journal.abort(self, reason)
        self._end_scores()
        self._cancel_expiry()
        self.wake()

    @property
    def line(self) -> int:
        """See AddRequest."""
        return self._request.line

    def resume(self) -> AddRequest:
        """The journal's: what a scheduler is told that knows nothing of this request."""
        self.resumed = True
        request = self._request
        return msgspec.structs.replace(request, token_ids_i32=request.token_ids_i32 + self._tokens.tobytes(), again=True)

    def push(self, token_id: int, logprobs: TopLogprobs | None) -> None:
        """The journal's: one more token."""
        self._tokens.append(token_id)
        self.length += 1
        if logprobs is not None:
            self._logprobs.append(logprobs)

    def finish(self, finished: Finished) -> None:
        """The journal's: nothing follows."""
        self._finished = finished
        self._end_scores()
        self._cancel_expiry()
        if not self.resumed:
            self.num_cached_tokens = finished.num_cached_tokens
        if finished.token_ids_i32:
            self._tokens, self._taken = array("i", finished.token_ids_i32), 0
            self.length = self._request.num_prompt_tokens + len(self._tokens)

    def count(self) -> Timeline:
        """The journal's: it ends here, with the tokens that came so far."""
        self.timeline.num_tokens = len(self._tokens)
        self.timeline.num_cached_tokens = self.num_cached_tokens
        return self.timeline

    def fail(self, error: EngineError) -> None:
        """The journal's: no further tokens, and no answer."""
        self._error = error
        self._end_scores()

    def wake(self) -> None:
        """The journal's: lets the reader see what was pushed."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _cancel_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def _end_scores(self) -> None:
        if self.scores is not None:
            self.scores.end()

    def take(self) -> TokenDelta:
        """The delta that `has_news` speaks of, or, of much with candidates, a part of it."""
        if self._taken < self._known:  # alone, since it has no log-probabilities
            self._taken = self._known
            return TokenDelta(self._tokens[: self._known].tolist(), [], num_cached_tokens=self.num_cached_tokens)
        end = self._taken + _AT_A_TURN if self._logprobs else len(self._tokens)
        token_ids = self._tokens[self._taken : end].tolist()
        self._taken += len(token_ids)
        logprobs, self._logprobs = self._logprobs[: len(token_ids)], self._logprobs[len(token_ids) :]
        finished, cached = self._finished, self.num_cached_tokens
        if finished is None or self._taken < len(self._tokens):
            return TokenDelta(token_ids, logprobs, num_cached_tokens=cached)
        self._over = True
        return TokenDelta(
            token_ids, logprobs, finished.reason, finished.stop_token_id, cached, finished.message, finished.unsatisfiable
        )
