"""Follows the tokens of constrained requests, and says what may come next. No sockets; the clock only measures itself."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from llguidance import LLMatcher

from protocol.clock import now_ns
from protocol.codec import Int32Array, pack_int32, unpack_int32, unpack_uint64
from protocol.grammar_messages import Advance, ConstraintFailed, Forced, WantMasks
from protocol.messages import StepMasks
from scheduler_proc.grammar.errors import GrammarError
from scheduler_proc.grammar.tokens import Tokens

_SLOW_NS = 300_000  # a mask takes 5 µs as a rule: one that took longer than this lets the others go first
_LEAST_FORCED = 3  # tokens: fewer are not worth a message, and the steps that change for it

Step: TypeAlias = tuple[int, int, int]  # worker, epoch, step id


@dataclass(frozen=True, slots=True)
class _Want:
    """A row of a step that waits for its mask."""

    step: Step
    row: int
    position: int


@dataclass(slots=True)
class _Followed:
    """One request: its tokens, and the matcher behind all of them and behind those that must come next."""

    request_id: int
    min_tokens: int
    tokens: list[int]  # output so far
    matcher: LLMatcher | None = None  # None: is being compiled
    ahead: deque[int] = field(default_factory=deque)  # tokens that the grammar forces next; the matcher has taken them
    waiting: list[_Want] = field(default_factory=list)  # for tokens that are not known, or for the matcher
    cost_ns: int = 0  # of its last mask

    @property
    def position(self) -> int:
        """Of the token that the matcher says something about."""
        return len(self.tokens) + len(self.ahead)


class Follower:
    """All constrained requests. A request that is not among them has ended, or failed: anything is allowed to it."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._requests: dict[int, _Followed] = {}
        self._ready: deque[tuple[_Followed | None, _Want]] = deque()  # None: anything is allowed
        self._slow: deque[tuple[_Followed | None, _Want]] = deque()  # the same, of matchers that take long
        self._said: list[Forced | ConstraintFailed] = []
        self._everything = _bits(tokens.num_words, range(tokens.vocab_size))
        self._ends = _bits(tokens.num_words, tokens.eos_ids)

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def has_work(self) -> bool:
        """Whether `masks` has something to do."""
        return bool(self._ready or self._slow)

    def clear(self) -> None:
        """Forgets everything."""
        self.__init__(self._tokens)  # type: ignore[misc]

    # what is told

    def constrain(self, request_id: int, min_tokens: int, token_ids: Sequence[int]) -> None:
        """A request whose matcher comes later. `token_ids`: its output so far."""
        self._requests[request_id] = _Followed(request_id, min_tokens, list(token_ids))

    def begin(self, request_id: int, matcher: LLMatcher) -> None:
        """The matcher of a request, at its beginning and nobody else's."""
        request = self._requests.get(request_id)
        if request is None:
            return
        request.matcher = matcher
        for token_id in request.tokens:
            if not self._consume(request, token_id):
                return
        self._wake(request)

    def fail(self, request_id: int, message: str) -> None:
        """A request cannot be followed."""
        if request_id in self._requests:
            self._said.append(ConstraintFailed(request_id, message))
            self.forget(request_id)

    def forget(self, request_id: int) -> None:
        """A request has ended. Its rows that still wait may have anything."""
        if (request := self._requests.pop(request_id, None)) is not None:
            self._ready.extend((None, want) for want in request.waiting)

    def advance(self, message: Advance) -> None:
        """Tokens became known."""
        requests = self._requests
        request_ids, positions = unpack_uint64(message.request_ids_u64).tolist(), unpack_int32(message.positions_i32).tolist()
        for request_id, position, token_id in zip(
            request_ids, positions, unpack_int32(message.token_ids_i32).tolist(), strict=True
        ):
            if (request := requests.get(request_id)) is None:
                continue
            if position != len(request.tokens):
                if position > len(request.tokens):
                    self.fail(request_id, "the engine lost track of this output")
                continue
            request.tokens.append(token_id)
            if request.matcher is None:
                continue
            if request.ahead:
                if request.ahead.popleft() != token_id:
                    self.fail(request_id, "the engine lost track of this output")
                    continue
            elif not self._consume(request, token_id):
                continue
            if request.waiting:
                self._wake(request)

    def want(self, message: WantMasks) -> None:
        """Rows of a step want masks."""
        step = message.worker, message.epoch, message.step_id
        rows, positions = unpack_int32(message.rows_i32).tolist(), unpack_int32(message.positions_i32).tolist()
        for row, request_id, position in zip(rows, unpack_uint64(message.request_ids_u64).tolist(), positions, strict=True):
            want = _Want(step, row, position)
            request = self._requests.get(request_id)
            if request is None:
                self._ready.append((None, want))
            elif request.matcher is None or position > request.position:
                request.waiting.append(want)
            else:
                self._enqueue(request, want)

    # what is said

    def said(self) -> list[Forced | ConstraintFailed]:
        """For the scheduler, since the last time. To be sent behind the masks that `masks` returned."""
        said, self._said = self._said, []
        return said

    def masks(self) -> list[tuple[int, StepMasks]]:
        """(worker, masks) of what is wanted and can be said by now: everything that is quick, or one mask that is not."""
        batch: list[tuple[_Followed | None, _Want]] = []
        while self._ready:
            batch.append(self._ready.popleft())
        if not batch and self._slow:
            batch.append(self._slow.popleft())
        rows = np.empty((len(batch), self._tokens.num_words), np.int32)
        by_step: dict[Step, tuple[list[int], list[int]]] = {}
        for index, (request, want) in enumerate(batch):
            self._write(request, want, rows[index])
            indices, numbers = by_step.setdefault(want.step, ([], []))
            indices.append(index)
            numbers.append(want.row)
        return [
            (worker, StepMasks(epoch, step_id, pack_int32(numbers), rows[indices].tobytes()))
            for (worker, epoch, step_id), (indices, numbers) in by_step.items()
        ]

    # within

    def _enqueue(self, request: _Followed, want: _Want) -> None:
        queue = self._slow if request.cost_ns > _SLOW_NS and want.position == request.position else self._ready
        queue.append((request, want))

    def _wake(self, request: _Followed) -> None:
        waiting, request.waiting = request.waiting, []
        for want in waiting:
            if want.position > request.position:
                request.waiting.append(want)
            else:
                self._enqueue(request, want)

    def _consume(self, request: _Followed, token_id: int) -> bool:
        """The matcher takes a token; False: it does not, and the request has failed."""
        matcher = request.matcher
        assert matcher is not None
        if matcher.is_stopped() or matcher.consume_token(token_id):  # behind an end, the engine may be told to go on with ends
            return True
        self.fail(request.request_id, f"the output left the grammar: {_first_line(matcher.get_error())}")
        return False

    def _write(self, request: _Followed | None, want: _Want, row: Int32Array) -> None:
        """The mask of one row."""
        if request is None or request.request_id not in self._requests:
            row[:] = self._everything
            return
        behind = request.position - want.position
        if behind > 0:
            known = len(request.tokens)
            token_id = request.tokens[want.position] if want.position < known else request.ahead[want.position - known]
            row[:] = 0
            row.view(np.uint32)[token_id // 32] = 1 << token_id % 32
            return
        matcher = request.matcher
        assert matcher is not None
        began = now_ns()
        try:
            self._tokens.fill(matcher, row)
            if want.position < request.min_tokens and (row & ~self._ends).any():
                row &= ~self._ends
        except GrammarError as error:
            row[:] = self._everything
            self.fail(request.request_id, str(error))
            return
        request.cost_ns = now_ns() - began
        if not request.ahead and want.position >= request.min_tokens:
            self._look_ahead(request)

    def _look_ahead(self, request: _Followed) -> None:
        """Takes the tokens that must come next, where there are several."""
        matcher = request.matcher
        assert matcher is not None
        forced = matcher.compute_ff_tokens()
        if len(forced) < _LEAST_FORCED:
            return
        row = np.empty(self._tokens.num_words, np.int32)
        for token_id in forced:
            # That the next text is certain does not mean that its tokens are: only a mask of one token does.
            self._tokens.fill(matcher, row)
            if not _is_only(row, token_id):
                break
            matcher.consume_token(token_id)
            request.ahead.append(token_id)
        if request.ahead:
            self._said.append(Forced(request.request_id, len(request.tokens), pack_int32(list(request.ahead))))
            self._wake(request)


def _bits(num_words: int, token_ids: Iterable[int]) -> Int32Array:
    """A mask of these tokens. int32, shape [num_words]."""
    allowed = np.zeros(num_words * 32, np.uint8)
    allowed[list(token_ids)] = 1
    return np.packbits(allowed, bitorder="little").view("<i4")


def _is_only(row: Int32Array, token_id: int) -> bool:
    return int(np.bitwise_count(row.view(np.uint32)).sum()) == 1 and bool(row.view(np.uint32)[token_id // 32] >> token_id % 32 & 1)


def _first_line(text: str) -> str:
    return text.partition("\n")[0]
