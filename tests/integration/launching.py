"""Starts real engines for tests and finds what they leave behind."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from protocol.clock import now

LAUNCH = (sys.executable, "-P", "-m", "frontend.launcher")
START_LIMIT = 90  # seconds; a hang fails the test, with what the engine said
STOP_LIMIT = 30  # seconds; well above what a drain of short requests takes

# A device that takes no noticeable time, and a context that keeps the pool small.
SIMULATED = ("--device", "sim", "--sim-decode-us", "200", "--sim-prefill-us-per-token", "0")


@dataclass
class Engine:
    """A running engine-launch."""

    process: subprocess.Popen[str]
    ready_line: str
    address: str
    socket: Path
    directory: Path  # the runtime directory: run dir and sockets lie in it, and nothing is left in it

    def children(self) -> list[psutil.Process]:
        """Every process that the launcher started."""
        children: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return children

    def child(self, name: str) -> psutil.Process:
        """The child that `ps` shows under this name."""
        (found,) = (child for child in self.children() if child.name() == name)
        return found

    def said(self) -> str:
        """Everything on standard error so far."""
        return (self.directory.parent / "stderr").read_text()

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> int:
        """Signals the launcher and waits for its exit code."""
        self.process.send_signal(signum)
        return self.process.wait(STOP_LIMIT)

    def complete(self, prompt: list[int], **fields: object) -> dict[str, object]:
        """One completion over HTTP, as its JSON."""
        body = {"model": "demo", "prompt": prompt, **fields}
        response = httpx.post(self.address + "/v1/completions", json=body, timeout=60)
        response.raise_for_status()
        answer: dict[str, object] = response.json()
        return answer


def wait_for(condition: Callable[[], object], what: str, limit: float = STOP_LIMIT) -> None:
    """Looks again and again until this holds, for `limit` seconds."""
    deadline = now() + limit
    while not condition():
        assert now() < deadline, f"never came: {what}"
        threading.Event().wait(0.01)


@contextmanager
def launch(directory: Path, *flags: str, command: Sequence[str] = LAUNCH, pass_fds: Sequence[int] = ()) -> Iterator[Engine]:
    """An engine with these flags on a free port, ready. A test that has not stopped it leaves one that stops cleanly."""
    runtime = directory / "run"
    runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
    process = start(directory, "--port", "0", "--ipc", str(runtime / "api.sock"), *flags, command=command, pass_fds=pass_fds)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.match(r"ready: (http://\S+)  ipc (\S+)  ", line)
        assert match is not None, f"no ready line but {line!r}:\n{(directory / 'stderr').read_text()}"
        engine = Engine(process, line, match[1], Path(match[2]), runtime)
        yield engine
        if process.poll() is None:
            assert engine.stop() == 0, engine.said()
    finally:
        process.kill()
        process.communicate()


def start(directory: Path, *flags: str, command: Sequence[str] = LAUNCH, pass_fds: Sequence[int] = ()) -> subprocess.Popen[str]:
    """engine-launch as its own process; standard error goes to a file, since nobody reads it meanwhile."""
    environ = os.environ | {"XDG_RUNTIME_DIR": str(directory / "run"), "JAX_PLATFORMS": "cpu"}
    environ.pop("ENGINE_SOCKET", None)
    with open(directory / "stderr", "w") as stderr:
        return subprocess.Popen(
            [*command, *flags], stdout=subprocess.PIPE, stderr=stderr, text=True, env=environ, pass_fds=pass_fds
        )


def refuse(directory: Path, *flags: str, command: Sequence[str] = LAUNCH) -> tuple[int, str]:
    """Starts an engine that must not start: exit code, and what it said."""
    (directory / "run").mkdir(mode=0o700, exist_ok=True)
    process = start(directory, *flags, command=command)
    output, _ = process.communicate(timeout=START_LIMIT)
    assert output == "", "a ready line, though it must not be ready"
    return process.returncode, (directory / "stderr").read_text()
