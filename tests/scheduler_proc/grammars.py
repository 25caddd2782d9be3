"""A grammar process whose grammars are rules that can be worked out by hand, for the engine in virtual time."""

import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from protocol.codec import pack_int32, unpack_int32, unpack_uint64
from protocol.config import PROTOCOL_VERSION
from protocol.grammar_messages import (
    Advance,
    Constrain,
    ConstraintFailed,
    Forced,
    Forget,
    GrammarReady,
    GrammarToScheduler,
    GrammarWelcome,
    SchedulerToGrammar,
    WantMasks,
)
from protocol.messages import StepMasks

_STRETCH = 6  # positions that are free, or forced, together


def allowed_after(text: str, output: Sequence[int], vocab_size: int) -> list[int]:
    """The token ids, rising, that a grammar of this text allows behind this output: one for stretches of positions, several for
    others. Which these are depends on the text, the position and, where it is free, on the last token."""
    position = len(output)
    if zlib.crc32(f"{text}/{position // _STRETCH}".encode()) % 2:
        return [zlib.crc32(f"{text}/{position}".encode()) % vocab_size]
    seed = f"{text}/{position}/{output[-1] if output else None}".encode()
    ids = [token for token in range(vocab_size) if zlib.crc32(seed + bytes([token])) % 3 == 0]
    return ids or [0]


@dataclass
class _Followed:
    text: str
    output: list[int]


@dataclass
class SimulatedGrammar:
    """One incarnation. Its pipes are queues that a test empties when it likes."""

    epoch: int
    vocab_size: int
    forces: bool
    inbox: deque[SchedulerToGrammar]
    masks: list[tuple[int, StepMasks]] = field(default_factory=list)  # on their way to workers
    outbox: deque[GrammarToScheduler] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._welcome = False
        self._followed: dict[int, _Followed] = {}
        self._wants: list[tuple[tuple[int, int, int], int, int, int]] = []  # step, row, request, position
        self._told: dict[int, int] = {}  # request -> position up to which its forced tokens were told
        self.outbox.append(GrammarReady(PROTOCOL_VERSION, self.epoch))

    def take_in(self, pieces: bool = False) -> None:
        """Reads one message. `pieces`: every mask in a message of its own."""
        if not self.inbox:
            return
        message = self.inbox.popleft()
        if isinstance(message, GrammarWelcome):
            self._welcome = message.epoch == self.epoch
            return
        if not self._welcome:
            return
        match message:
            case Constrain(request_id, grammar, token_ids_i32):
                assert request_id not in self._followed, "told twice"
                self._followed[request_id] = _Followed(grammar.text, unpack_int32(token_ids_i32).tolist())
            case Forget(request_id):
                self._followed.pop(request_id, None)  # it may have failed
            case Advance():
                self._advance(message)
            case WantMasks(worker, epoch, step_id):
                ids, positions = unpack_uint64(message.request_ids_u64).tolist(), unpack_int32(message.positions_i32).tolist()
                for row, request_id, position in zip(unpack_int32(message.rows_i32).tolist(), ids, positions, strict=True):
                    self._wants.append(((worker, epoch, step_id), row, request_id, position))
        self._answer(pieces)

    def fail(self, request_id: int) -> bool:
        """A request cannot be followed; False: it is not."""
        if self._followed.pop(request_id, None) is None:
            return False
        self.outbox.append(ConstraintFailed(request_id, f"request {request_id} has no grammar any more"))
        self._answer(False)
        return True

    def _advance(self, message: Advance) -> None:
        ids, positions = unpack_uint64(message.request_ids_u64).tolist(), unpack_int32(message.positions_i32).tolist()
        for request_id, position, token in zip(ids, positions, unpack_int32(message.token_ids_i32).tolist(), strict=True):
            if (followed := self._followed.get(request_id)) is None:
                continue  # it failed
            assert position == len(followed.output), "tokens come in their order, each once"
            assert token in allowed_after(followed.text, followed.output, self.vocab_size), "a token that was not allowed"
            followed.output.append(token)

    def _ahead(self, followed: _Followed) -> list[int]:
        """What must come next."""
        output = list(followed.output)
        while len(allowed := allowed_after(followed.text, output, self.vocab_size)) == 1 and len(output) < 200:
            output += allowed
        return output[len(followed.output) :]

    def _answer(self, pieces: bool) -> None:
        ready: dict[tuple[int, int, int], list[tuple[int, list[int]]]] = {}
        left = []
        for want in self._wants:
            step, row, request_id, position = want
            followed = self._followed.get(request_id)
            if followed is None:
                ready.setdefault(step, []).append((row, list(range(self.vocab_size))))
                continue
            assert position >= len(followed.output), "a mask is wanted for a token that is known"
            ahead = self._ahead(followed)
            if position > len(followed.output) + len(ahead):
                left.append(want)
                continue
            output = (followed.output + ahead)[:position]
            ready.setdefault(step, []).append((row, allowed_after(followed.text, output, self.vocab_size)))
            if self.forces and ahead and self._told.get(request_id, -1) < len(followed.output):
                self._told[request_id] = len(followed.output) + len(ahead)
                self.outbox.append(Forced(request_id, len(followed.output), pack_int32(ahead)))
        self._wants = left
        for (worker, epoch, step_id), rows in ready.items():
            for part in [[row] for row in rows] if pieces else [rows]:
                bits = _pack([ids for _, ids in part], self.vocab_size)
                self.masks.append((worker, StepMasks(epoch, step_id, pack_int32([row for row, _ in part]), bits)))


def _pack(allowed: list[list[int]], vocab_size: int) -> bytes:
    flags = np.zeros((len(allowed), -(-vocab_size // 32) * 32), np.uint8)
    for row, ids in enumerate(allowed):
        flags[row, ids] = 1
    return np.packbits(flags, axis=1, bitorder="little").tobytes()
