"""engine-launch with its real children: start, stop, and every way that a start can fail."""

import json
import socket
import threading
from pathlib import Path

import httpx
import psutil
import pytest

from frontend.launcher.models import resolve_model
from protocol.errors import ExitCode
from tests.integration.launching import SIMULATED, STOP_LIMIT, Engine, launch, refuse


def wait_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=STOP_LIMIT)
    assert not alive


def test_the_ready_line_says_where_what_and_how_much(simulated_engine: Engine) -> None:
    line = simulated_engine.ready_line
    assert line.startswith(f"ready: http://127.0.0.1:{httpx.URL(simulated_engine.address).port}  ipc {simulated_engine.socket}  ")
    assert "model SmolLM2-135M-Instruct  workers 1  device " in line
    assert "  depth 2  KV cache " in line
    assert line.endswith(" tokens in blocks of 16\n")
    assert httpx.get(simulated_engine.address + "/health").status_code == 200


def test_each_part_is_a_process_with_a_name(simulated_engine: Engine) -> None:
    wanted = ["chat-template", "chat-template", "frontend", "grammar", "grammar-helper", "scheduler_proc", "tpu_worker-0"]
    while (names := sorted(child.name() for child in simulated_engine.children())) != wanted:
        assert set(names) <= {*wanted, "python"}, names  # what starts behind the ready line has no name at first


def test_sockets_are_private(simulated_engine: Engine) -> None:
    assert simulated_engine.socket.stat().st_mode & 0o777 == 0o600
    (run_dir,) = simulated_engine.directory.glob("twodeep-*")
    assert run_dir.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("taken", ["port", "socket"])
def test_an_address_that_is_taken(simulated_engine: Engine, tmp_path: Path, taken: str) -> None:
    port = str(httpx.URL(simulated_engine.address).port) if taken == "port" else "0"
    path = str(simulated_engine.socket) if taken == "socket" else str(tmp_path / "run" / "api.sock")
    code, said = refuse(tmp_path, *SIMULATED, "--port", port, "--ipc", path)
    assert code == ExitCode.ADDRESS_IN_USE
    assert (port if taken == "port" else path) in said
    assert "Traceback" not in said
    assert list((tmp_path / "run").iterdir()) == []
    assert simulated_engine.complete([5, 6, 7], max_tokens=2), "the engine that was there first is unharmed"


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "stale.sock"))
    with launch(tmp_path / "engine", *SIMULATED, "--ipc", str(tmp_path / "stale.sock")) as engine:
        assert engine.stop() == ExitCode.OK
    assert not (tmp_path / "stale.sock").exists()


@pytest.mark.parametrize("device", ["sim", "cpu"])
def test_a_gguf_that_is_cut_short(tmp_path: Path, device: str) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(Path(resolve_model("demo").path).read_bytes()[:100_000])
    sockets = ("--port", "0", "--ipc", str(tmp_path / "run" / "api.sock"))
    code, said = refuse(tmp_path, "--model", str(cut), "--device", device, *sockets)
    assert code == ExitCode.BAD_MODEL
    assert str(cut) in said
    assert "Traceback" not in said
    assert list((tmp_path / "run").iterdir()) == []


def test_sigterm_under_load_finishes_what_runs_and_leaves_nothing(tmp_path: Path) -> None:
    streams, lengths = 6, []
    all_began = threading.Barrier(streams + 1, timeout=STOP_LIMIT)

    def read(address: str) -> None:
        body = {"model": "demo", "prompt": [7] * 20, "max_tokens": 300, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", address + "/v1/completions", json=body | {"return_token_ids": True}, timeout=60) as response:
            chunks = (json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {"))
            first = next(chunks)
            all_began.wait()
            lengths.append(sum(len(chunk["choices"][0]["token_ids"]) for chunk in (first, *chunks)))

    with launch(tmp_path, *SIMULATED, "--sim-decode-us", "5000", "--workers", "2") as engine:
        threads = [threading.Thread(target=read, args=(engine.address,)) for _ in range(streams)]
        for thread in threads:
            thread.start()
        all_began.wait()  # 1.5 s of tokens are still to come
        children = engine.children()
        assert engine.stop() == ExitCode.OK
        for thread in threads:
            thread.join()
        assert lengths == [300] * streams
        wait_gone(children)
        assert list(engine.directory.iterdir()) == []
        assert "Traceback" not in engine.said()


def test_a_killed_worker_is_replaced_and_serves(tmp_path: Path) -> None:
    with launch(tmp_path, *SIMULATED) as engine:
        before = engine.complete([9, 8, 7], max_tokens=5, seed=1)
        engine.child("tpu_worker-0").kill()
        after = engine.complete([9, 8, 7], max_tokens=5, seed=1)
        assert after["choices"] == before["choices"]
        assert engine.stop() == ExitCode.OK
        assert "worker 0 was killed by SIGKILL" in engine.said()


@pytest.mark.parametrize("name", ["scheduler_proc", "frontend"])
def test_the_death_of_scheduler_or_frontend_without_restarts_ends_the_engine(tmp_path: Path, name: str) -> None:
    with launch(tmp_path, *SIMULATED, "--max-restarts", "0") as engine:
        children = engine.children()
        engine.child(name).kill()
        assert engine.process.wait(STOP_LIMIT) == ExitCode.CRASHED
        wait_gone(children)
        assert list(engine.directory.iterdir()) == []
        assert "was killed by SIGKILL" in engine.said()


def test_children_notice_when_the_launcher_is_killed_and_tidy_up(tmp_path: Path) -> None:
    with launch(tmp_path, *SIMULATED, "--workers", "2") as engine:
        children = engine.children()
        engine.process.kill()
        wait_gone(children)
        assert list(engine.directory.iterdir()) == []
