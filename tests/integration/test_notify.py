"""What a service manager hears of a real engine."""

import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.errors import ExitCode
from tests.integration.launching import SIMULATED, STOP_LIMIT, launch


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(STOP_LIMIT)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "1000000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        yield manager


def heard_until(manager: socket.socket, wanted: str) -> list[str]:
    """Everything up to and with the first state that has this in it."""
    states: list[str] = []
    while not states or wanted not in states[-1]:
        states.append(manager.recv(4096).decode())
    return states


def test_the_watchdog_is_fed_by_the_progress_of_every_process(tmp_path: Path, manager: socket.socket) -> None:
    flags = ("--pulse-timeout", "3", "--step-timeout", "3", "--restart-delay", "0.1")
    with launch(tmp_path / "engine", *SIMULATED, *flags) as engine:
        start = heard_until(manager, "READY=1")
        assert "EXTEND_TIMEOUT_USEC=120000000" in start
        assert "STATUS=frontend: decoding for the first time" in start, "it is ready when it has decoded"
        assert re.search(r"shorter than --step-timeout and --pulse-timeout together \(6 s\)", engine.said())
        for _ in range(3):
            heard_until(manager, "WATCHDOG=1")
        engine.child("tpu_worker-0").send_signal(signal.SIGSTOP)
        silence = heard_until(manager, "degraded: 0 of 1 workers")
        assert silence.count("WATCHDOG=1") <= 2, "of what came before the worker stopped"
        recovered = heard_until(manager, "STATUS=serving SmolLM2-135M-Instruct")
        heard_until(manager, "WATCHDOG=1")
        assert "READY=1" not in "".join(recovered)
        assert engine.stop() == ExitCode.OK
        end = heard_until(manager, "STOPPING=1")[-1]
    assert re.search(r"EXTEND_TIMEOUT_USEC=(\d+)", end)
