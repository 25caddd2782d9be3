"""Follows the tokens of constrained requests, and says what may come next. No sockets; the clock only measures itself."""

import itertools
import os
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from llguidance import LLExecutor, LLMatcher

from protocol.clock import now_ns
from protocol.codec import Int32Array, pack_int32, unpack_int32, unpack_uint64
from protocol.grammar_messages import Advance, ConstraintFailed, Forced, WantMasks
from protocol.messages import StepMasks
from scheduler_proc.grammar.errors import GrammarError
from scheduler_proc.grammar.suspect import SEVERAL, Suspect
from scheduler_proc.grammar.tokens import Tokens

_SLOW_NS = 300_000  # a mask takes 5 µs as a rule: one that took longer than this lets the others go first
_MOST_THREADS = 8
_TOGETHER = 16  # rows: fewer are done before other threads are awake
_CAREFUL_BATCHES = 8  # behind one that took long: in these each row is measured by itself
_SAMPLED = 61  # every so many words of a mask are looked at
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

    def token(self, position: int) -> int:
        """A token that the matcher has taken."""
        known = len(self.tokens)
        return self.tokens[position] if position < known else self.ahead[position - known]


_Entry: TypeAlias = tuple[_Followed | None, _Want]  # None: anything is allowed
_Asked: TypeAlias = tuple[int, _Followed, LLMatcher, int]  # row of a batch, request, its matcher, position


class Follower:
    """All constrained requests. A request that is not among them has ended, or failed: anything is allowed to it."""

    def __init__(self, tokens: Tokens, suspect: Suspect, threads: int | None = None) -> None:
        """`threads`: that work out masks at a time; None: as many as the processors allow."""
        self._tokens = tokens
        self._suspect = suspect
        self._requests: dict[int, _Followed] = {}
        self._ready: list[_Entry] = []
        self._slow: deque[_Entry] = deque()  # of matchers that take long
        if threads is None:
            threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)) // 2)  # the others are the workers' and the frontends'
        self._executor = LLExecutor(threads) if threads > 1 else None
        # Batches that are still to be measured row by row; all of them, where a predecessor died over several rows.
        self._careful = sys.maxsize if suspect.last == SEVERAL else 0
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
        self._requests.clear()
        self._ready.clear()
        self._slow.clear()
        self._said.clear()

    # what is told

    def constrain(self, request_id: int, min_tokens: int, token_ids: Sequence[int]) -> None:
        """A request whose matcher comes later. `token_ids`: its output so far."""
        self._requests[request_id] = _Followed(request_id, min_tokens, list(token_ids))
        if request_id == self._suspect.culprit:
            self.fail(request_id, "it ended the processes that followed it")

    def begin(self, request_id: int, matcher: LLMatcher) -> None:
        """The matcher of a request, at its beginning and nobody else's."""
        request = self._requests.get(request_id)
        if request is None:
            return
        request.matcher = matcher
        if all(self._consume(request, token_id) for token_id in request.tokens):
            self._wake(request)
        self._suspect.end()

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
        self._suspect.end()

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
        batch, self._ready = self._ready, []
        if not batch and self._slow:
            batch.append(self._slow.popleft())
        batch.sort(key=lambda entry: entry[1].step)
        rows = self._compute(batch)
        messages, begin = [], 0
        for (worker, epoch, step_id), entries in itertools.groupby(batch, lambda entry: entry[1].step):
            numbers = [want.row for _, want in entries]
            end = begin + len(numbers)
            messages.append((worker, StepMasks(epoch, step_id, pack_int32(numbers), rows[begin:end].tobytes())))
            begin = end
        return messages

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
        self._suspect.begin(request.request_id)
        if matcher.consume_token(token_id):  # behind an end, the engine may be told to go on with ends, which it takes too
            return True
        self.fail(request.request_id, f"the output left the grammar: {_first_line(matcher.get_error())}")
        return False

    def _compute(self, batch: list[_Entry]) -> Int32Array:
        """The mask of each row: int32, shape [rows, words]."""
        rows = np.empty((len(batch), self._tokens.num_words), np.int32)
        asked: list[_Asked] = []
        first: dict[int, int] = {}  # request -> the row that is asked for
        copies: list[tuple[int, int]] = []  # rows that are wanted a second time
        for index, (request, want) in enumerate(batch):
            if request is None or request.request_id not in self._requests:
                rows[index] = self._everything
            elif want.position < request.position:
                rows[index] = 0
                token_id = request.token(want.position)
                rows[index].view(np.uint32)[token_id // 32] = 1 << token_id % 32
            elif request.request_id in first:
                copies.append((index, first[request.request_id]))
            elif request.matcher is not None:
                first[request.request_id] = index
                asked.append((index, request, request.matcher, want.position))
        if asked:
            self._ask(asked, rows)
        for index, other in copies:
            rows[index] = rows[other]
        return rows

    def _ask(self, asked: list[_Asked], rows: Int32Array) -> None:
        """Writes the masks that only matchers know, and looks ahead of them."""
        self._fill(asked, rows)
        # A mask with bits in several of these words leaves a choice, and needs no second look.
        several = np.count_nonzero(rows[:, ::_SAMPLED], axis=1) > 1
        for index, request, matcher, position in asked:
            try:
                self._tokens.check(matcher, rows[index])
            except GrammarError as error:
                rows[index] = self._everything
                self.fail(request.request_id, str(error))
                continue
            if position < request.min_tokens:
                self._hold_back_the_end(rows[index])
            elif not several[index] and not request.ahead:
                self._look_ahead(request)
        self._suspect.end()

    def _fill(self, asked: list[_Asked], rows: Int32Array) -> None:
        """Has the matchers write their masks, on several threads where that pays."""
        begin, size = rows.ctypes.data, rows.strides[0]
        if self._executor is not None and len(asked) >= _TOGETHER and not self._careful:
            began = now_ns()
            self._suspect.begin(SEVERAL)
            self._executor.unsafe_compute_mask_ptr([(matcher, index) for index, _, matcher, _ in asked], begin, size, len(rows))
            if now_ns() - began > _SLOW_NS + len(asked) * _SLOW_NS // _TOGETHER:
                self._careful = _CAREFUL_BATCHES
            return
        self._careful = max(0, self._careful - 1)
        before = now_ns()
        for index, request, matcher, _ in asked:
            self._suspect.begin(request.request_id)
            matcher.unsafe_compute_mask_ptr(begin + index * size, size)
            after = now_ns()
            request.cost_ns = after - before
            before = after

    def _hold_back_the_end(self, row: Int32Array) -> None:
        without = row & ~self._ends
        if without.any():
            row[:] = without

    def _look_ahead(self, request: _Followed) -> None:
        """Takes the tokens that must come next, where there are several."""
        matcher = request.matcher
        assert matcher is not None
        self._suspect.begin(request.request_id)
        forced = matcher.compute_ff_tokens()
        if len(forced) < _LEAST_FORCED:
            return
        for token_id in forced:
            # That the next text is certain does not mean that its tokens are: only a mask of one token does.
            try:
                if not _is_only(self._tokens.mask(matcher), token_id) or not matcher.consume_token(token_id):
                    break
            except GrammarError:  # a limit: the next mask is refused
                break
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
