"""How every process of an engine logs: to standard error, a line for each event, with its time, its level, and who says it.

Lines are for people, or JSON objects. No process ever waits for who reads them: what a full pipe, socket or terminal does not take
is left out and counted, and a reader that is gone is nobody's trouble.
"""

import fcntl
import logging
import os
import select
import socket
import stat
import struct
import termios
import time
from collections.abc import Callable

import msgspec

from protocol.config import LogFormat, LogLevel

_OURS = ("protocol", "frontend", "scheduler_proc", "tpu_worker")  # libraries are heard from WARNING on
_TIME = "%Y-%m-%dT%H:%M:%S"


class LineSink:
    """Writes whole lines to a descriptor, without ever waiting."""

    def __init__(self, fd: int = 2) -> None:
        self._given = self._fd = fd
        self._socket: socket.socket | None = None
        self._waits = True  # a write may wait, so room is asked for
        self._is_pipe = False
        self._rest = b""  # of a line that was taken in part
        self._left_out = 0
        try:
            mode = os.fstat(fd).st_mode
            if stat.S_ISSOCK(mode):
                self._socket, self._waits = socket.socket(fileno=os.dup(fd)), False
            elif stat.S_ISFIFO(mode):
                # Opened anew, since others share this end of the pipe, and with it whether it waits.
                self._fd, self._waits = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC), False
                self._is_pipe = True
        except OSError:
            pass  # closed, or not to be opened again: then it is written to as it is

    def write(self, line: str, about_left_out: Callable[[str], str] = str) -> None:
        """`about_left_out`: makes a line of what is said about those that were left out."""
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        if self._left_out:
            data = about_left_out(f"{self._left_out} lines were left out: nobody read them").encode() + b"\n" + data
        try:
            if self._is_pipe and len(data) > select.PIPE_BUF and not self._takes_whole(data):
                raise BlockingIOError
            if self._rest:
                self._rest = self._rest[self._send(self._rest) :]
            if not self._rest:
                self._rest = data[self._send(data) :]
                self._left_out = 0
                return
        except OSError:
            pass
        self._left_out += 1

    def close(self) -> None:
        """Lets go of what was opened here; the descriptor stays its owner's."""
        if self._socket is not None:
            self._socket.close()
        if self._fd != self._given:
            os.close(self._fd)

    def _send(self, data: bytes) -> int:
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        if self._waits and not self._has_room():
            raise BlockingIOError
        return os.write(self._fd, data)

    def _takes_whole(self, data: bytes) -> bool:
        """Whether the pipe has room for a long line. The kernel would take a part of it, and another process's stood within.

        A pipe counts pages, and what does not fit into the rest of one begins another: bytes take up to twice their room.
        """
        used: int = struct.unpack("i", fcntl.ioctl(self._fd, termios.FIONREAD, bytes(4)))[0]
        return 2 * used + len(data) + select.PIPE_BUF <= fcntl.fcntl(self._fd, fcntl.F_GETPIPE_SZ)

    def _has_room(self) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(0))


class LineFormat(logging.Formatter):
    """What every line has: the time (UTC, of the wall clock, since people compare it with their own), level, source and text; the
    name of the client's request that it is about, where it is about one (`request_id`); and, as JSON, more `fields`.
    """

    converter = staticmethod(time.gmtime)

    def __init__(self, process: str, style: LogFormat) -> None:
        super().__init__()
        self._process = process
        self._kind = style

    def format(self, record: logging.LogRecord) -> str:
        """One line, with a traceback behind it (or in it) where there is one."""
        name = getattr(record, "request_id", "")
        text = record.getMessage()
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        when = f"{self.formatTime(record, _TIME)}.{int(record.msecs):03}Z"
        if self._kind == "human":
            about = f" [{name}]" if name else ""
            return f"{when} {record.levelname} {self._process}, {record.name}: {text}{about}" + (f"\n{trace}" if trace else "")
        line: dict[str, object] = {"time": when, "level": record.levelname.lower(), "process": self._process, "source": record.name}
        line |= {"message": text} | ({"request_id": name} if name else {}) | ({"trace": trace} if trace else {})
        return msgspec.json.encode(line | getattr(record, "fields", {})).decode()


class _Handler(logging.Handler):
    def __init__(self, sink: LineSink) -> None:
        super().__init__()
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._sink.write(self.format(record), lambda text: self.format(_remark(text)))
        except Exception:  # noqa: BLE001 - a record that cannot be formatted; logging's own words on it would be no line
            self._sink.write(self.format(_remark(f"a line that cannot be written, of {record.name}")))


def set_up_logging(process: str, style: LogFormat = "human", level: LogLevel = "warning") -> None:
    """For the whole process, libraries and Python's own warnings included. `process`: as the launcher calls it."""
    handler = _Handler(LineSink())
    handler.setFormatter(LineFormat(process, style))
    logging.basicConfig(handlers=[handler], force=True)
    set_level(level)
    logging.captureWarnings(True)


def set_level(level: LogLevel) -> None:
    """For the whole process; libraries say nothing below a warning."""
    logging.getLogger().setLevel(max(logging.WARNING, _number(level)))
    for package in _OURS:
        logging.getLogger(package).setLevel(_number(level))


def _number(level: LogLevel) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


def _remark(text: str) -> logging.LogRecord:
    return logging.LogRecord("protocol.logs", logging.WARNING, "", 0, text, (), None)
