"""Where weights lie: on huge pages, since they are read once per step, from end to end, and through pages of 4 KB that takes a
quarter longer."""

import contextlib
import functools
import math
import mmap
import threading

import numpy as np
import numpy.typing as npt

_CHUNK = 64 << 20  # bytes asked of the system at once: many huge pages, of which only the touched ones are taken
_ALIGNMENT = 64  # bytes: a cache line, and what JAX needs to take an array over without a copy


class Arena:
    """Hands out arrays from large chunks, which live as long as any array in them. Safe to call from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chunk = np.zeros(0, np.uint8)
        self._used = 0

    def zeros(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[np.generic]:
        """A new array of zeros, aligned to a cache line."""
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        with self._lock:
            if self._used + size > self._chunk.size:
                self._chunk, self._used = _reserve(max(size, _CHUNK)), 0
            start = self._used
            self._used += -(-size // _ALIGNMENT) * _ALIGNMENT
            return self._chunk[start : start + size].view(kind).reshape(shape)


@functools.cache
def process_arena() -> Arena:
    """The arena that this process keeps its weights in: like the heap, one of them is enough."""
    return Arena()


def _reserve(size: int) -> npt.NDArray[np.uint8]:
    pages = mmap.mmap(-1, size)
    with contextlib.suppress(AttributeError, OSError):  # a system without huge pages has ordinary ones
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8)
