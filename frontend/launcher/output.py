"""What the launcher says, and to whom. A reader that is gone, or a disk that is full, ends no engine."""

import errno
import logging
import os
import sys

TYPE_CHECKING = False  # typing's own would cost the milliseconds in which a signal is not yet caught
if TYPE_CHECKING:
    from typing import TextIO

    from protocol.config import LogFormat


def say(text: str) -> None:
    """A line for the operator, on standard error."""
    write_line(sys.stderr, f"engine-launch: {text}")


class Voice:
    """What the launcher says while an engine runs: it never waits for who reads it, since processes wait for the launcher."""

    def __init__(self, style: "LogFormat") -> None:
        from protocol.logs import LineFormat, LineSink  # these bring more than a refusal needs

        self._sink = LineSink()
        self._format = LineFormat("engine-launch", style) if style != "human" else None

    def say(self, text: str) -> None:
        """A line for the operator, on standard error."""
        self._sink.write(self._remark(text), self._remark)

    def progress(self, text: str) -> None:
        """A line about the start."""
        self._sink.write(self._line(text, text, logging.INFO), self._remark)

    def _remark(self, text: str) -> str:
        return self._line(f"engine-launch: {text}", text, logging.WARNING)

    def _line(self, plain: str, text: str, level: int) -> str:
        if self._format is None:
            return plain
        return self._format.format(logging.LogRecord("frontend.launcher", level, "", 0, text, (), None))


def announce(line: str) -> None:
    """The one line on standard output; if that takes none, on standard error, with the reason."""
    if (error := write_line(sys.stdout, line)) is not None:
        say(f"standard output takes nothing ({error.strerror}), so here: {line}")


def write_line(stream: "TextIO | None", line: str) -> OSError | None:
    """Writes at once. Returns why it could not, and from then on what is written to the stream goes nowhere."""
    if stream is None:  # was closed when this process began
        return OSError(errno.EBADF, os.strerror(errno.EBADF))
    try:
        print(line, file=stream, flush=True)
    except OSError as error:
        _turn_away(stream)
        return error
    return None


def finish() -> None:
    """Last call: what is still to be written is, so that the interpreter finds nothing to complain about at its end."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            try:
                stream.flush()
            except OSError:
                _turn_away(stream)


def open_standard_descriptors() -> None:
    """First call: gives the numbers 0 to 2 a meaning if they have none, else a socket gets one and receives what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free, which is this one


def _turn_away(stream: "TextIO") -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
