"""The launcher's loop with real processes, signals and sockets; the children are tiny programs of this folder."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

TIMEOUT = 20  # seconds; each of these takes well under one, so this only bounds a hang


@contextmanager
def launched(behaviour: str, tmp_path: Path, *, workers: int = 1, stdout: int = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    program = [sys.executable, str(Path(__file__).with_name("tiny_launch.py")), behaviour, str(tmp_path / "api.sock"), str(workers)]
    environ = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
    process = subprocess.Popen(program, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environ)
    with process:
        try:
            yield process
        finally:
            process.kill()


def wait_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("ready: http://127.0.0.1:1  ipc /"), line + process.communicate(timeout=TIMEOUT)[1]
    assert line.endswith("model m  workers 1  device none  depth 2  KV cache 1,234 tokens in blocks of 64\n")


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)


def read_until(process: subprocess.Popen[str], text: str) -> str:
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"{text!r} never came:\n{seen}")


def test_ready_then_sigterm_ends_all_in_order_and_leaves_nothing(tmp_path: Path) -> None:
    with launched("good", tmp_path, workers=2) as process:
        wait_ready(process)
        (run_dir,) = tmp_path.glob("twodeep-*")
        wait_for(run_dir / "grammar0.epoch0")  # is started when the engine is ready
        children = psutil.Process(process.pid).children()
        assert sorted(child.name() for child in children) == ["tiny", "tiny", "tiny", "tiny-0", "tiny-1"]
        assert run_dir.stat().st_mode & 0o777 == 0o700
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, errors
        assert "finishing the running requests" in errors
        assert not any(child.is_running() for child in children)
        assert list(tmp_path.iterdir()) == []


def test_an_engine_serves_on_when_nobody_reads_its_standard_output(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with launched("good", tmp_path, stdout=write) as process:
        os.close(write)
        seen = read_until(process, "standard output takes nothing (Broken pipe), so here: ready: http://127.0.0.1:1")
        assert "Traceback" not in seen
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0


def test_progress_goes_to_stderr_in_plain_lines(tmp_path: Path) -> None:
    with launched("good", tmp_path) as process:
        wait_ready(process)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=TIMEOUT)
        assert output == ""
        assert "worker 0: waking up\n" in errors
        assert "\x1b" not in errors


def test_a_worker_that_cannot_boot_gives_its_reason_and_code(tmp_path: Path) -> None:
    with launched("cannot-boot", tmp_path) as process:
        output, errors = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 65
        assert output == ""
        assert errors.count("model.gguf: cut short") == 1
        assert list(tmp_path.iterdir()) == []


def test_a_process_that_cannot_be_started_is_a_failure_like_any_other(tmp_path: Path) -> None:
    with launched("no-program", tmp_path) as process:
        output, errors = process.communicate(timeout=TIMEOUT)
        assert (process.returncode, output) == (1, "")
        assert "worker 0: no process could be started: [Errno 2] No such file or directory" in errors
        assert "Traceback" not in errors
        assert list(tmp_path.iterdir()) == []


def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    with launched("crash-once", tmp_path) as process:
        wait_ready(process)
        seen = read_until(process, "is back (epoch 1)")
        assert "worker 0 was killed by SIGKILL" in seen
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=TIMEOUT)
        assert "lost worker 0 epoch 0" in seen + errors
        assert process.returncode == 0


def test_a_killed_scheduler_is_replaced_and_all_hear_of_it(tmp_path: Path) -> None:
    with launched("good", tmp_path) as process:
        wait_ready(process)
        (pid_file,) = tmp_path.glob("twodeep-*/scheduler0.epoch0")
        os.kill(int(pid_file.read_text()), signal.SIGKILL)
        assert "scheduler was killed by SIGKILL" in read_until(process, "scheduler is back (epoch 1)")
        (run_dir,) = tmp_path.glob("twodeep-*")
        assert (run_dir / "1").stat().st_mode & 0o777 == 0o700
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, errors


def test_a_scheduler_that_may_not_start_again_ends_the_engine(tmp_path: Path) -> None:
    with launched("no-restarts", tmp_path) as process:
        wait_ready(process)
        (pid_file,) = tmp_path.glob("twodeep-*/scheduler0.epoch0")
        os.kill(int(pid_file.read_text()), signal.SIGKILL)
        _, errors = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 1
        assert "scheduler was killed by SIGKILL" in errors


def test_a_second_signal_does_not_wait_for_a_child_that_ignores_the_first(tmp_path: Path) -> None:
    with launched("mute-on-drain", tmp_path) as process:
        wait_ready(process)
        process.send_signal(signal.SIGTERM)
        read_until(process, "finishing the running requests")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, errors
        assert list(tmp_path.iterdir()) == []


def test_children_leave_when_the_launcher_is_killed(tmp_path: Path) -> None:
    with launched("good", tmp_path, workers=2) as process:
        wait_ready(process)
        children = psutil.Process(process.pid).children()
        process.kill()
        _, alive = psutil.wait_procs(children, timeout=TIMEOUT)
        assert not alive


def test_what_a_killed_engine_left_is_removed_by_the_next(tmp_path: Path) -> None:
    with launched("good", tmp_path) as process:
        wait_ready(process)
        everybody = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
        for one in everybody:  # the launcher first, and stopped, so that it cannot tidy up
            one.suspend()
        for one in everybody:
            one.kill()
        psutil.wait_procs(everybody[1:], timeout=TIMEOUT)
    (left,) = tmp_path.glob("twodeep-*")
    with launched("good", tmp_path) as process:
        wait_ready(process)
        (run_dir,) = tmp_path.glob("twodeep-*")
        assert run_dir != left
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=TIMEOUT)
    assert list(tmp_path.iterdir()) == []


def test_a_stop_that_comes_before_the_first_child_is_a_stop(tmp_path: Path) -> None:
    """The handlers stand before anything that takes time is imported, read or looked for."""
    program = [
        sys.executable,
        "-P",
        "-m",
        "frontend.launcher",
        "--device",
        "sim",
        "--ipc",
        str(tmp_path / "api.sock"),
        "--port",
        "0",
    ]
    environ = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ) as process:
        while not caught(process.pid) & 1 << (signal.SIGTERM - 1):
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, output) == (0, "")
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def caught(pid: int) -> int:
    """Signals that a process has handlers for, as bits."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:"))
    return int(line.split()[1], 16)


def test_systemd_hears_of_ready_and_stop_and_children_do_not_see_its_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(TIMEOUT)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with launched("crash-once", tmp_path) as process:
            wait_ready(process)
            read_until(process, "is back (epoch 1)")
            child = psutil.Process(process.pid).children()[0]
            assert "NOTIFY_SOCKET" not in child.environ()
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=TIMEOUT)
        manager.setblocking(False)
        states = []
        while True:
            try:
                states.append(manager.recv(4096).decode())
            except BlockingIOError:
                break
    ready = states.index("READY=1\nSTATUS=serving m")
    assert "EXTEND_TIMEOUT_USEC=120000000" in states[:ready]
    assert any(re.match(r"STATUS=(worker 0|scheduler|frontend): waking up$", state) for state in states[:ready])
    assert states[ready + 1 : -1] == ["STATUS=serving m, degraded: 0 of 1 workers", "STATUS=serving m"]
    assert re.match(r"STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC=\d+$", states[-1])
