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
        self._rows: dict[int, dict[int, UInt32Array]] = {}  # step id -> row -> bits
        self.refused = 0  # messages for another incarnation, or for steps that are sampled or cannot have been sent

    def add(self, message: StepMasks) -> None:
        """Takes in one message. Raises ProtocolError when it does not fit this worker's vocabulary."""
        if message.epoch != self._epoch or not self._oldest <= message.step_id <= self._oldest + self._ahead:
            self.refused += 1
            return
        rows = unpack_int32(message.rows_i32)
        if len(message.bits) != 4 * self._words * len(rows) or len(rows) > self._max_rows:
            raise ProtocolError(f"masks of {len(message.bits)} bytes for {len(rows)} rows of {self._words} words")
        bits = np.frombuffer(message.bits, "<u4").reshape(len(rows), self._words)
        held = self._rows.setdefault(message.step_id, {})
        for row, mask in zip(rows.tolist(), bits, strict=True):
            if 0 <= row < self._max_rows:
                held.setdefault(row, mask)

    def missing(self, step_id: int, rows: Int32Array) -> list[int]:
        """Which of these rows of a step have no mask yet."""
        held = self._rows.get(step_id, {})
        return [row for row in rows.tolist() if row not in held]

    def take(self, step_id: int, rows: Int32Array) -> UInt32Array | None:
        """Masks [rows, words] of a step that is sampled now, or None while some are missing."""
        held = self._rows.get(step_id)
        if held is None or len(held) < len(rows) or self.missing(step_id, rows):
            return None
        bits = np.stack([held[row] for row in rows.tolist()])
        self.sampled(step_id)
        return bits

    def sampled(self, step_id: int) -> None:
        """Nothing more is wanted for this step and those before it."""
        self._oldest = step_id + 1
        self._rows = {step: rows for step, rows in self._rows.items() if step > step_id} if self._rows else self._rows
