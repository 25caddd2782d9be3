"""Masks come in any order, in pieces, twice, too late or for somebody else."""

import numpy as np
import pytest

from protocol.codec import pack_int32
from protocol.errors import ProtocolError
from protocol.messages import StepMasks
from tpu_worker.masks import Masks

WORDS = 3  # of a vocabulary of 80


def masks(depth: int = 2) -> Masks:
    return Masks(7, 80, 4, depth)


def message(step_id: int, rows: list[int], first: int = 0, epoch: int = 7) -> StepMasks:
    bits = np.arange(first, first + len(rows) * WORDS, dtype="<u4")
    return StepMasks(epoch, step_id, pack_int32(rows), bits.tobytes())


ROWS = np.array([1, 3], np.int32)


def test_a_step_has_its_masks_when_every_row_has_one() -> None:
    held = masks()
    assert held.take(0, ROWS) is None and held.missing(0, ROWS).tolist() == [1, 3]
    held.add(message(0, [3], first=50))
    held.add(message(0, [2]))  # of a row that waits for none
    assert held.take(0, ROWS) is None and held.missing(0, ROWS).tolist() == [1]
    held.add(message(0, [0, 1], first=10))
    held.add(message(0, [1], first=90))  # told again: the first counts
    bits = held.take(0, ROWS)
    assert bits is not None and bits.tolist() == [[13, 14, 15], [50, 51, 52]]


def test_masks_may_come_before_their_step() -> None:
    held = masks()
    held.add(message(1, [1, 3]))
    held.add(message(0, [1, 3], first=20))
    first, second = held.take(0, ROWS), held.take(1, ROWS)
    assert first is not None and first[0, 0] == 20 and second is not None and second[0, 0] == 0


def test_what_nobody_will_sample_is_not_kept() -> None:
    held = masks(depth=2)
    held.add(message(0, [1, 3], epoch=6))  # for a predecessor
    held.add(message(3, [1, 3]))  # more steps than may be in flight
    held.sampled(0)
    held.add(message(0, [1, 3]))  # too late
    assert all(held.take(step, ROWS) is None for step in (0, 3))
    held.add(message(3, [1, 3]))
    held.add(message(1, [1]))
    held.sampled(1)  # which had no masked rows after all
    assert held.take(1, ROWS) is None and held.take(3, ROWS) is not None
    held.add(message(4, [9, -1, 1]))  # rows that no step has
    assert held.missing(4, np.array([1, 3], np.int32)).tolist() == [3]


def test_masks_of_another_vocabulary_are_an_error() -> None:
    with pytest.raises(ProtocolError, match="masks of 12 bytes for 2 rows of 3 words"):
        masks().add(StepMasks(7, 0, pack_int32([0, 1]), bytes(12)))
