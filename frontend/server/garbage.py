"""When Python looks for garbage in cycles among all objects: while there are few.

It looks at every object that there is, some hundred for each request. With thousands of requests that holds the event loop for a
quarter of a second, and finds next to nothing. Young objects are looked at as ever, and what is in no cycle is freed at once.
"""

import gc
import sys

_NEVER = 1 << 30  # as a threshold
_DUE = 10  # collections of the middle generation before a full one: Python's own
_FEW = 200_000  # blocks of memory: some 20 ms
_MOST_SECONDS = 60.0  # that a full collection which is due waits for there to be few


class FullCollections:
    """Makes them at the pulse of the process. What is there when this is made stays, and is not looked at."""

    def __init__(self, now_seconds: float) -> None:
        gc.collect()
        gc.freeze()
        gc.set_threshold(*gc.get_threshold()[:2], _NEVER)
        self._num_frozen = sys.getallocatedblocks()
        self._made_seconds = now_seconds

    def tick(self, now_seconds: float) -> bool:
        """Time passed. Returns whether a collection was made."""
        if gc.get_count()[2] < _DUE:
            return False
        many = sys.getallocatedblocks() - self._num_frozen > _FEW
        if many and now_seconds - self._made_seconds < _MOST_SECONDS:
            return False
        gc.collect()
        self._made_seconds = now_seconds
        return True
