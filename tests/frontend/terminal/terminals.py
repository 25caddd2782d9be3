"""A program at a terminal of its own, and somebody who types."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol.clock import now

_LIMIT = 60.0  # seconds; a hang fails the test with what was on the screen
_STYLES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """The user's end."""

    def __init__(self, master: int, process: "subprocess.Popen[bytes]") -> None:
        self._master = master
        self._unread = ""
        self._data = b""
        self.process = process

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def until(self, wanted: str, *, raw: bool = False) -> str:
        """Everything that is shown, up to and with `wanted`, without styles and moves of the cursor unless `raw`."""
        deadline = now() + _LIMIT
        while True:
            shown = self._unread if raw else _STYLES.sub("", self._unread).replace("\r", "")
            before, found, _ = shown.partition(wanted)
            if found:
                self._unread = "" if raw else shown[len(before) + len(found) :]
                return before + found
            assert self._read(deadline), f"{wanted!r} did not come, but: {self._unread!r}"

    def more(self) -> None:
        """Waits for anything else to be shown."""
        deadline = now() + _LIMIT
        while not self._unread.strip():
            assert self._read(deadline), "nothing came"

    def rest(self) -> str:
        """Everything until the program ends."""
        deadline = now() + _LIMIT
        while self._read(deadline):
            pass
        return _STYLES.sub("", self._unread).replace("\r", "")

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - now()))
        if not ready:
            return False
        try:
            self._data += os.read(self._master, 1 << 16)
        except OSError:  # nobody has the other end open any more
            return False
        text = self._data.decode(errors="ignore")
        self._unread, self._data = self._unread + text, b""
        return True


@contextmanager
def at_terminal(module: str, *arguments: str, socket: Path) -> Iterator[Terminal]:
    """`python -m MODULE` whose standard streams, and controlling terminal, are a new terminal."""
    master, slave = pty.openpty()
    environ = os.environ | {"ENGINE_SOCKET": str(socket), "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    # What runs in the background of a shell ignores interrupts, and so would the program.
    command = ["env", "--default-signal=INT", "setsid", "--ctty", sys.executable, "-P", "-m", module, *arguments]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environ)
    os.close(slave)
    try:
        yield Terminal(master, process)
    finally:
        process.kill()
        process.wait()
        os.close(master)


def piped(module: str, *arguments: str, socket: Path, text: str = "") -> "subprocess.CompletedProcess[str]":
    """`python -m MODULE` without a terminal: its exit code, and what it wrote."""
    environ = os.environ | {"ENGINE_SOCKET": str(socket)}
    command = [sys.executable, "-P", "-m", module, *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, env=environ, timeout=_LIMIT, check=False)
