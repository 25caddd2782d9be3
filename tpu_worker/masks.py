"""Masks that came for steps that are not sampled yet: before their step or after it, in one piece or in several."""

import numpy as np

from protocol.codec import Int32Array, UInt32Array, unpack_int32
from protocol.errors import ProtocolError
from protocol.messages import StepMasks


class Masks:
    """Those of one incarnation of a worker. What it holds is bounded: steps ahead by the queue's depth, rows by the slots."""

    def __init__(self, epoch: int, vocab_size: int, max_num_seqs: int, queue_depth: int) -> None:
        self._epoch = epoch
        self._words = -(-vocab_size // 32)  # of a row
        self._max_rows = max_num_seqs
        self._ahead = queue_depth
        self._oldest = 0  # step that may still be sampled
        self._pieces: dict[
            int, list[tuple[Int32Array, UInt32Array]]
        ] = {}  # step id -> rows [n], all different, and bits [n, words]

    def add(self, message: StepMasks) -> None:
        """Takes in one message. Raises ProtocolError when it does not fit this worker's vocabulary."""
        if message.epoch != self._epoch or not self._oldest <= message.step_id <= self._oldest + self._ahead:
            return  # for another incarnation, or a step that is sampled or cannot have been sent
        rows = unpack_int32(message.rows_i32)
        if len(message.bits) != 4 * self._words * len(rows) or len(rows) > self._max_rows:
            raise ProtocolError(f"masks of {len(message.bits)} bytes for {len(rows)} rows of {self._words} words")
        bits = np.frombuffer(message.bits, "<u4").reshape(len(rows), self._words)
        held = self._pieces.setdefault(message.step_id, [])
        new = (rows >= 0) & (rows < self._max_rows)
        if held:
            new &= ~np.isin(rows, _rows_of(held))
        held.append((rows, bits) if new.all() else (rows[new], bits[new]))

    def missing(self, step_id: int, rows: Int32Array) -> Int32Array:
        """Which of these rows of a step have no mask yet."""
        held = self._pieces.get(step_id)
        return np.setdiff1d(rows, _rows_of(held)) if held else rows

    def take(self, step_id: int, rows: Int32Array) -> UInt32Array | None:
        """Masks [rows, words] of a step that is sampled now, or None while some are missing. rows: rising."""
        held = self._pieces.get(step_id)
        if not held:
            return None
        if len(held) == 1 and np.array_equal(held[0][0], rows):  # as a rule
            bits = held[0][1]
        elif len(self.missing(step_id, rows)):
            return None
        else:
            known, first = np.unique(_rows_of(held), return_index=True)
            bits = np.concatenate([piece for _, piece in held])[first[np.searchsorted(known, rows)]]
        self.sampled(step_id)
        return bits

    def sampled(self, step_id: int) -> None:
        """Nothing more is wanted for this step and those before it."""
        self._oldest = step_id + 1
        if self._pieces:
            self._pieces = {step: held for step, held in self._pieces.items() if step > step_id}


def _rows_of(pieces: list[tuple[Int32Array, UInt32Array]]) -> Int32Array:
    return np.concatenate([rows for rows, _ in pieces])
