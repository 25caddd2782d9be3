"""The host's memory: what the heap keeps, and what the KV cache may have.

What a step works in is freed after it and wanted again by the next: the heap keeps it, since to take it from the system anew costs
some microseconds per page of 4 KB, a third of a step's time at worst.
"""

import ctypes
from collections.abc import Sequence

import jax
import psutil

from protocol.host_memory import memory_limit

_SHARE = 0.5  # of the free memory, shared by the workers; the rest stays for the programs beside the engine
_LIMIT = 2 << 30  # bytes over all workers: more than two cores fill, little enough to be a guest on a laptop

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # <malloc.h>
_MOST = 2**31 - 1  # bytes: what an option can say
_GROWTH = 64 << 20  # bytes by which the heap grows at least


class HostMemory:
    """Implements `platform.Memory`."""

    def before_loading(self) -> None:
        """From here on, freed memory stays in the heap."""
        keep_freed_memory()

    def after_loading(self) -> None:
        """Gives back what loading took, once."""
        return_free_memory()

    def for_kv_cache(self, devices: Sequence[jax.Device], workers: int, pending: int, utilization: float | None = None) -> int:
        """As the protocol says. Devices forced out of one host share its memory."""
        free = max(0, _available() - pending * workers * len(devices))
        spared = 0 if utilization is None else int(memory_limit() * (1.0 - utilization))
        free = int(min(free * _SHARE, _LIMIT)) if utilization is None else max(0, free - spared)
        return free // (workers * len(devices))

    def left(self, devices: Sequence[jax.Device], pending: int) -> int | None:
        """As the protocol says. What other workers have taken by now is not free any more, what they will yet take is."""
        return max(0, _available() // len(devices) - pending)


def _available() -> int:
    return min(int(psutil.virtual_memory().available), memory_limit())


def keep_freed_memory() -> None:
    """From here on, freed memory stays in the heap, whatever its size. Does nothing where malloc is not glibc's."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, value in ((_M_TRIM_THRESHOLD, _MOST), (_M_MMAP_THRESHOLD, _MOST), (_M_TOP_PAD, _GROWTH)):
            libc.mallopt(option, value)


def return_free_memory() -> None:
    """Gives the system back what is free now. Does nothing where malloc is not glibc's."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(ctypes.c_size_t(0))
