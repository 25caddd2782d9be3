"""How this process holds memory.

Weights lie on huge pages: they are read once per step, from end to end, and through pages of 4 KB that takes a quarter longer.
What a step works in is freed after it and wanted again by the next: the heap keeps it, since to take it from the system anew costs
some microseconds per page of 4 KB, a third of a step's time at worst.
"""

import contextlib
import ctypes
import functools
import math
import mmap
import threading
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Allocate: TypeAlias = Callable[[tuple[int, ...], npt.DTypeLike], npt.NDArray[Any]]  # an array of zeros, as `Arena.zeros`

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


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # <malloc.h>
_MOST = 2**31 - 1  # bytes: what an option can say


def keep_freed_memory() -> None:
    """From here on, freed memory stays in the heap, whatever its size. Does nothing where malloc is not glibc's."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, value in ((_M_TRIM_THRESHOLD, _MOST), (_M_MMAP_THRESHOLD, _MOST), (_M_TOP_PAD, _CHUNK)):
            libc.mallopt(option, value)


def return_free_memory() -> None:
    """Gives the system back what is free now. Does nothing where malloc is not glibc's."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(ctypes.c_size_t(0))


def _reserve(size: int) -> npt.NDArray[np.uint8]:
    pages = mmap.mmap(-1, size)
    with contextlib.suppress(AttributeError, OSError):  # a system without huge pages has ordinary ones
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8)
