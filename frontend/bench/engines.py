"""Starts an engine for a benchmark, as a user would, and stops it again."""

import contextlib
import os
import re
import signal
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

    def client(self) -> Client:
        """A new connection of the Python client."""
        return Client(self.socket)


@contextlib.contextmanager
def running_engine(*flags: str) -> Iterator[RunningEngine]:
    """`engine-launch` with these flags on free addresses, until the block ends. Raises EngineError when it does not get ready."""
    with tempfile.TemporaryDirectory(prefix="engine-bench-") as directory:
        socket, log = f"{directory}/api.sock", Path(directory) / "log"
        command = [sys.executable, "-P", "-m", "frontend.launcher", "--port", "0", "--ipc", socket, *flags]
        environ = {name: value for name, value in os.environ.items() if name != "ENGINE_SOCKET"}
        with (
            log.open("w") as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environ) as process,
        ):
            assert process.stdout is not None
            try:
                yield RunningEngine(_wait_until_ready(process.stdout, log), socket, process.pid)
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(_STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()


def _wait_until_ready(lines: Iterator[str], log: Path) -> str:
    for line in lines:
        if match := re.search(r"ready: (http://\S+)", line):
            return match[1]
    raise EngineError(f"the engine did not get ready: {log.read_text()[-2000:]}")
