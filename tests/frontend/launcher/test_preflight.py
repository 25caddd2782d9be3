"""engine-launch --check: everything that a start would look at, and what would stop it, without one."""

import json
import os
import socket
import sys
from functools import partial
from pathlib import Path

import pytest

from frontend.launcher import placement
from frontend.launcher.__main__ import main
from frontend.launcher.placement import Placement
from frontend.launcher.preflight.ask import ask
from frontend.launcher.preflight.gather import check
from frontend.launcher.preflight.report import Answer, Report, as_json, as_text
from protocol.errors import ExitCode
from tests.frontend.launcher.hosts import FakeHost, install, install_jax
from tests.model_writer import write_gguf, write_huggingface

# What stands in for chips that are not there: it answers as `tpu_worker.probe` does where they are.
ANSWERS = """
import json, os
chips = os.environ.get("TPU_VISIBLE_CHIPS", "0,1,2,3").split(",")
print(json.dumps({"devices": [{"kind": "TPU v6 lite", "memory": 33_000_000_000} for _ in chips], "platform": "libtpu"}))
"""


def program(text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", text)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    """A host without anything, with JAX 0.10.2, its plugins, a model `good.gguf`, and nothing in the environment."""
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(install_jax(tmp_path / "site")), *sys.path])
    for name in ("ENGINE_SOCKET", "NOTIFY_SOCKET", "TPU_VISIBLE_CHIPS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    write_gguf(tmp_path / "good.gguf", **{"llama.attention.head_count": 8})  # eight chips can share it
    return FakeHost(tmp_path / "host")


def report(fake: FakeHost, *arguments: str, answers: str = ANSWERS, **environ: str) -> Report:
    base = {"XDG_RUNTIME_DIR": str(Path.cwd() / "run"), "XDG_CACHE_HOME": str(Path.cwd() / "cache")}
    flags = ["--model", "good.gguf", "--port", "0", "--check", *arguments]
    found, _ = check(flags, base | environ, places=fake.places, ask_chips=partial(ask, program=program(answers)))
    return found


def test_nothing_would_stop_a_start(fake: FakeHost) -> None:
    found = report(fake.tpu("v6e", 4), "--workers", "2", "--tensor-parallel-size", "2")
    assert (found.exit_code, found.obstacles, found.remarks) == (0, [], [])
    assert found.device == "tpu"
    assert [answer.chips for answer in found.workers] == [("0", "1"), ("2", "3")]
    said = as_text(found)
    for part in (
        "libtpu 0.0.42.1",
        f"{fake.places.dev}/vfio/3: TPU v6e, 34.4 GB, free",
        "no limit",
        "worker 1 (chips 2, 3): 2 × TPU v6 lite, 33.0 GB each, computes",
        "good.gguf (gguf, ",
        "8.2 GB of ",
        "a port of 127.0.0.1 is free",
        "twodeep.sock is free",
    ):
        assert part in said
    assert said.endswith("nothing would stop a start")
    assert list((Path.cwd() / "run").iterdir()) == []


def test_all_that_would_stop_it_is_told_at_once(fake: FakeHost) -> None:
    fake.tpu("v5e", 8)
    fake.process(4711, "python3", "vfio/5")
    fake.locked_memory("65536")
    install(Path.cwd() / "site2", "libtpu", "0.0.50.1")
    sys.path.insert(0, str(Path.cwd() / "site2"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        found = report(fake, "--tensor-parallel-size", "8", "--model", "none.gguf", "--port", port, "--ipc", "no/where")
    assert found.exit_code == ExitCode.BAD_CONFIG  # what a start would see first: the socket's path
    told = [obstacle.text for obstacle in found.obstacles]
    wanted = (
        "libtpu 0.0.50.1",
        "vfio/5 is held by process 4711 (python3)",
        "may lock 64 KiB",
        f"port {port} on",
        "no/where",
        "none.gguf",
    )
    assert [part for part in wanted if not any(part in text for text in told)] == []
    assert len(told) == len(wanted)
    assert {obstacle.exit_code for obstacle in found.obstacles} == {64, 65, 69, 73}
    assert found.workers == []  # chips that are held are not asked
    assert "a start would end with exit code 64" in as_text(found)
    assert "held by process 4711 (python3)" in as_text(found)


def test_on_another_host_of_a_worker_libtpu_would_wait(fake: FakeHost) -> None:
    found = report(fake.tpu("v6e", 1), "--tensor-parallel-size", "2", "--hosts", "a,b", "--host-rank", "1")
    assert (found.exit_code, found.obstacles, found.workers) == (0, [], [])
    assert found.remarks == ["libtpu is not asked about the chips: it would wait for the other hosts"]
    assert not found.port and not found.socket  # nobody is served there


def test_json_says_the_same(fake: FakeHost) -> None:
    found = report(fake.tpu("v7x", 4), "--tensor-parallel-size", "1")
    told = json.loads(as_json(found))
    assert (told["exit_code"], told["device"], told["workers"][0]["chips"]) == (0, "tpu", ["0"])
    assert [chip["memory"] for chip in told["chips"]] == [192 << 30] * 4
    assert "a v7x chip has 2 devices" in told["remarks"][0]


def test_a_wrong_flag_does_not_hide_the_rest(fake: FakeHost) -> None:
    found = report(fake, "--device", "sim", "--prot", "1")
    assert found.exit_code == ExitCode.BAD_CONFIG and "did you mean --port" in found.obstacles[0].text
    assert found.versions["jax"] == "0.10.2"
    found = report(fake, "--device", "sim", "--max-num-seqs", "513")
    assert [obstacle.exit_code for obstacle in found.obstacles] == [ExitCode.BAD_CONFIG]
    assert found.model is not None and found.port


def test_a_model_that_is_not_here(fake: FakeHost) -> None:
    found = report(fake, "--device", "sim", "--model", "Org/Absent")
    assert found.exit_code == 0 and found.model is None
    assert ["a start downloads it first" in remark for remark in found.remarks] == [True]
    found = report(fake, "--device", "sim", "--model", "Org/Absent", HF_HUB_OFFLINE="1")
    assert [obstacle.exit_code for obstacle in found.obstacles] == [ExitCode.BAD_MODEL]
    directory = write_huggingface(Path.cwd() / "whole")
    found = report(fake, "--device", "sim", "--model", str(directory))
    assert found.model is not None and found.model.size == (directory / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('print(\'{"error": "chip 3 is hot"}\')', "worker 0: chip 3 is hot"),
        ("import sys; print('warming up'); sys.exit('no driver')", "worker 0: it ended with 1: no driver"),
        ("import os; os.abort()", "worker 0: it ended with -6"),
        ('print(\'{"devices": [{"kind": "TPU"}]}\')', "worker 0 sees 1 devices, and --tensor-parallel-size is 4"),
    ],
)
def test_chips_that_do_not_answer(fake: FakeHost, text: str, message: str) -> None:
    found = report(fake.tpu("v6e", 4), "--tensor-parallel-size", "4", answers=text)
    (obstacle,) = found.obstacles
    assert obstacle.text.startswith(f"--device tpu: {message}")
    assert found.exit_code == ExitCode.DEVICE_UNAVAILABLE


def test_chips_that_never_answer_are_not_waited_for_for_ever() -> None:
    (answer,) = ask("tpu", [Placement((), {})], {}, patience=0.2, program=program("import signal; signal.pause()"))
    assert answer.error == "no answer within 0.2 s"


def test_a_worker_that_answers_is_heard_beside_one_that_hangs() -> None:
    hangs = "import json, os, signal\nif 'HANG' in os.environ: signal.pause()\nprint(json.dumps({'devices': [{'kind': 'TPU'}]}))"
    hung, well = ask("tpu", [Placement((), {"HANG": "1"}), Placement((), {})], {}, patience=0.5, program=program(hangs))
    assert hung.error and not well.error and well.devices == ("TPU",)


def test_workers_are_asked_in_their_own_environments() -> None:
    shows = "import json, os; print(json.dumps({'devices': [{'kind': os.environ['MINE']}], 'platform': ''}))"
    placements = [Placement((), {"MINE": name}, (name,)) for name in ("a", "b")]
    environ = {"NOTIFY_SOCKET": "/none"}
    assert ask("tpu", placements, environ, program=program(shows)) == [Answer(0, ("a",), ("a",)), Answer(1, ("b",), ("b",))]


@pytest.mark.slow
def test_processors_answer() -> None:
    two = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    (answer,) = ask("cpu", [Placement((), two)], os.environ)
    assert answer.devices == ("cpu", "cpu") and not answer.error


@pytest.mark.parametrize("arguments", [("--check",), ("--check", "--log-format", "json"), ()])
def test_as_a_program(
    fake: FakeHost, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    """Both the check and a start say within a second what keeps the chips from them, and nothing is loaded for it."""
    fake.tpu("v5e", 1)
    fake.process(4711, "python3", "vfio/0")
    monkeypatch.setattr(placement, "HERE", fake.places)
    monkeypatch.setattr(placement, "_ENDING", 0.0)
    monkeypatch.setattr(sys, "argv", ["engine-launch", "--model", "good.gguf", "--device", "tpu", "--port", "0", *arguments])
    assert main() == ExitCode.DEVICE_UNAVAILABLE
    said = capfd.readouterr()
    sentence = f"--device tpu: {fake.places.dev}/vfio/0 is held by process 4711 (python3): end it"
    if not arguments:
        assert said.err.startswith(f"engine-launch: {sentence}") and said.err.count("\n") == 1 and said.out == ""
    elif "json" in arguments:
        assert json.loads(said.out)["obstacles"][0]["text"].startswith(sentence)
    else:
        assert sentence in said.out
