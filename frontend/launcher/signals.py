"""Stop signals as bytes in a pipe: the handler does nothing, a loop reads."""

import os
import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """From construction on, SIGINT and SIGTERM end nothing by themselves: they wait here to be counted.

    Made before anything else, so that no moment of the start is left in which a stop would end the process by signal.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for signum in STOP_SIGNALS:
            signal.signal(signum, _do_nothing)

    def end(self) -> None:
        """The exit code stands: a stop that comes while the interpreter ends changes nothing any more."""
        for signum in STOP_SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        os.close(self._read)
        os.close(self._write)

    def fileno(self) -> int:
        """Readable when a signal came."""
        return self._read

    def take(self) -> int:
        """How many came since this was asked last."""
        try:
            return sum(signum in STOP_SIGNALS for signum in os.read(self._read, 4096))
        except BlockingIOError:
            return 0


def _do_nothing(signum: int, frame: FrameType | None) -> None:
    """Python needs a handler to write the wake-up byte."""
