"""Numbers of requests and of questions: they name the frontend that gave them, so that whoever answers knows whom to tell.

The highest bits are the frontend's index, then come its epoch and a counter. The numbers of an only frontend that never died are
1, 2, 3, …; all are positive in 63 bits.
"""

import itertools
from collections.abc import Iterator

MAX_FRONTENDS = 64
_EPOCH_BITS, COUNTER_BITS = (
    16,
    40,
)  # deaths at the highest rate for three weeks; a million requests a second for 12 days
FRONTEND_SHIFT = _EPOCH_BITS + COUNTER_BITS
_LAST_EPOCH = (1 << _EPOCH_BITS) - 1


def request_ids(frontend: int, epoch: int) -> Iterator[int]:
    """The numbers that this incarnation of a frontend gives, rising."""
    return itertools.count((frontend << FRONTEND_SHIFT) + (min(epoch, _LAST_EPOCH) << COUNTER_BITS) + 1)


def frontend_of(request_id: int) -> int:
    """The index of the frontend that gave this number."""
    return request_id >> FRONTEND_SHIFT


def epoch_of(request_id: int) -> int:
    """That frontend's epoch."""
    return request_id >> COUNTER_BITS & _LAST_EPOCH
