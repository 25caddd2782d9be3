"""Masks that came for steps that are not sampled yet: before their step or after it, in one piece or in several."""

from dataclasses import dataclass

import numpy as np

from protocol.codec import BoolArray, Int32Array, UInt32Array, unpack_int32
from protocol.errors import ProtocolError
from protocol.messages import StepMasks


@dataclass(slots=True)
class _Place:
    """Room for the masks of one step at a time."""

    step_id: int
    bits: UInt32Array  # [rows, words], of rows that are here
    here: BoolArray  # [rows]


class Masks:
    """Those of one incarnation of a worker. What it holds is bounded: steps ahead by the queue's depth, rows by the slots."""

    def __init__(self, epoch: int, vocab_size: int, max_num_seqs: int, queue_depth: int) -> None:
        self._epoch = epoch
        self.num_words = -(-vocab_size // 32)  # of a row
        self._max_rows = max_num_seqs
        self._oldest = 0  # step that may still be sampled
        self._places: list[_Place | None] = [None] * (queue_depth + 1)  # of that step and those behind it, round and round

    def add(self, message: StepMasks) -> None:
        """Takes in one message. Raises ProtocolError when it does not fit this worker's vocabulary."""
        if message.epoch != self._epoch or not self._oldest <= message.step_id < self._oldest + len(self._places):
            return  # for another incarnation, or a step that is sampled or cannot have been sent
        rows = unpack_int32(message.rows_i32)
        if len(message.bits) != 4 * self.num_words * len(rows):
            raise ProtocolError(f"masks of {len(message.bits)} bytes for {len(rows)} rows of {self.num_words} words")
        bits = np.frombuffer(message.bits, "<u4").reshape(len(rows), self.num_words)
        place = self._place(message.step_id)
        new = (rows >= 0) & (rows < self._max_rows)
        new[new] = ~place.here[rows[new]]
        if not new.all():
            rows, bits = rows[new], bits[new]
        place.bits[rows] = bits
        place.here[rows] = True

    def missing(self, step_id: int, rows: Int32Array) -> Int32Array:
        """Which of these rows of a step have no mask yet."""
        place = self._places[step_id % len(self._places)]
        return rows if place is None or place.step_id != step_id else rows[~place.here[rows]]

    def take(self, step_id: int, rows: Int32Array) -> UInt32Array | None:
        """Masks [rows, words] of a step that is sampled now, or None while some are missing."""
        place = self._places[step_id % len(self._places)]
        if place is None or place.step_id != step_id or not place.here[rows].all():
            return None
        self.sampled(step_id)
        return place.bits[rows]

    def sampled(self, step_id: int) -> None:
        """Nothing more is wanted for this step and those before it."""
        self._oldest = step_id + 1

    def _place(self, step_id: int) -> _Place:
        index = step_id % len(self._places)
        place = self._places[index]
        if place is None:
            bits, here = np.empty((self._max_rows, self.num_words), np.uint32), np.zeros(self._max_rows, bool)
            place = self._places[index] = _Place(step_id, bits, here)
        elif place.step_id != step_id:
            place.step_id = step_id
            place.here[:] = False
        return place
