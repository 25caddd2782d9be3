"""What a process says to the kernel about itself."""

import ctypes
import signal
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def name_process(name: str) -> None:
    """What `ps` shows: the first 15 characters, since the kernel keeps no more."""
    Path("/proc/self/comm").write_text(name[:15])


def die_with_parent() -> None:
    """The kernel kills this process when the one that started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
