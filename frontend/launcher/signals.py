"""Signals as bytes in a pipe: the handler does nothing, a loop reads."""

import os
import signal
from types import FrameType
from typing import Literal

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """From construction on, SIGINT, SIGTERM and SIGHUP end nothing by themselves: they wait here to be read.

    Made before anything else, so that no moment of the start is left in which a stop would end the process by signal.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._terminal = _terminal()
        for signum in (*STOP_SIGNALS, signal.SIGHUP):
            signal.signal(signum, _do_nothing)

    def end(self) -> None:
        """The exit code stands: a stop that comes while the interpreter ends changes nothing any more."""
        for signum in (*STOP_SIGNALS, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        os.close(self._read)
        os.close(self._write)

    def fileno(self) -> int:
        """Readable when a signal came."""
        return self._read

    def take(self) -> list[Literal["stop", "reload"]]:
        """What is wanted since this was asked last, in order. SIGHUP wants a reload, unless the terminal was closed."""
        try:
            signums = os.read(self._read, 4096)
        except BlockingIOError:
            return []
        hung_up = self._terminal and not _terminal()
        wanted: list[Literal["stop", "reload"]] = []
        for signum in signums:
            if signum in STOP_SIGNALS or (signum == signal.SIGHUP and hung_up):
                wanted.append("stop")
            elif signum == signal.SIGHUP:
                wanted.append("reload")
        return wanted


def _terminal() -> bool:
    """Whether this process has a terminal that is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def _do_nothing(signum: int, frame: FrameType | None) -> None:
    """Python needs a handler to write the wake-up byte."""
