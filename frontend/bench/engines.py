"""Starts an engine for a benchmark, as a user would, and stops it again."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from frontend.client import Client
from protocol.errors import EngineError

_STOP_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class RunningEngine:
    """An engine that is ready."""

    base_url: str
    socket: str
    pid: int
    ready_line: str = ""  # what it said of itself

    def client(self) -> Client:
        """A new connection of the Python client."""
        return Client(self.socket)


# What a service manager does for a unit with a socket: sd_listen_fds(3).
_HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.argv[2], sys.argv[2:])
"""


@contextlib.contextmanager
def running_engine(*flags: str, listener: socket.socket | None = None) -> Iterator[RunningEngine]:
    """`engine-launch` with these flags on free addresses, until the block ends. `listener`: what it is to listen on instead, and
    leave as it is. Raises EngineError when it does not get ready.
    """
    with tempfile.TemporaryDirectory(prefix="engine-bench-") as directory:
        api, log = f"{directory}/api.sock", Path(directory) / "log"
        command = [sys.executable, "-P", "-m", "frontend.launcher", "--port", "0", "--ipc", api, *flags]
        held = [] if listener is None else [listener.fileno()]
        if held:
            command = [sys.executable, "-c", _HAND_OVER, str(held[0]), *command]
        environ = {name: value for name, value in os.environ.items() if name != "ENGINE_SOCKET"}
        with (
            log.open("w") as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environ, pass_fds=held) as process,
        ):
            assert process.stdout is not None
            try:
                base_url, ready_line = _wait_until_ready(process.stdout, log)
                yield RunningEngine(base_url, api, process.pid, ready_line)
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(_STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()


def _wait_until_ready(lines: Iterator[str], log: Path) -> tuple[str, str]:
    for line in lines:
        if match := re.search(r"ready: (http://\S+)", line):
            return match[1], line.strip()
    raise EngineError(f"the engine did not get ready: {log.read_text()[-2000:]}")
