"""engine-launch as a program: what it refuses is one line and a code, and nothing was started for it."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from frontend.launcher.__main__ import main
from frontend.server.ipc.listener import ListeningSocket
from protocol.errors import ExitCode
from tests.model_writer import METADATA, gguf_bytes, write_gguf, write_huggingface


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of models, right and wrong, and a runtime directory in which nothing may appear."""
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("ENGINE_SOCKET", "NOTIFY_SOCKET", "WATCHDOG_USEC"):
        monkeypatch.delenv(name, raising=False)
    write_gguf(tmp_path / "good.gguf")
    write_gguf(tmp_path / "other.gguf", **{"general.architecture": "mamba"})
    write_gguf(tmp_path / "half.gguf").write_bytes(gguf_bytes()[:500])
    (tmp_path / "part-00001-of-00002.gguf").write_bytes(gguf_bytes(METADATA | {"split.no": 0, "split.count": 2}))
    write_huggingface(tmp_path / "good")
    write_huggingface(tmp_path / "other", architectures=["PhiForCausalLM"])
    write_huggingface(tmp_path / "few-bits", quantization_config={"quant_method": "bitsandbytes"})
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("--model good.gguf --port 70000", ExitCode.BAD_CONFIG, "--port 70000: a whole number"),
        ("--model good.gguf --host no-such-host.invalid", ExitCode.BAD_CONFIG, "--host no-such-host.invalid: no known host"),
        ("--model good.gguf --ipc none/api.sock", ExitCode.BAD_CONFIG, "/none does not exist: make it, or choose another"),
        ("--model good.gguf --max-model-len 257", ExitCode.BAD_CONFIG, "--max-model-len 257 is more than the 256 tokens"),
        ("--model good --max-model-len 257", ExitCode.BAD_CONFIG, "--max-model-len 257 is more than the 256 tokens"),
        ("--model good.gguf --config /dev/zero", ExitCode.BAD_CONFIG, "--config /dev/zero: more than"),
        ("--model absent.gguf", ExitCode.BAD_MODEL, "--model absent.gguf: no such file or directory"),
        ("--model Org/Absent", ExitCode.BAD_MODEL, "--model Org/Absent: not in the cache"),
        ("--model other.gguf", ExitCode.BAD_MODEL, "other.gguf: general.architecture 'mamba' is not supported, only llama"),
        ("--model half.gguf", ExitCode.BAD_MODEL, "half.gguf: cut short or damaged"),
        ("--model part-00001-of-00002.gguf", ExitCode.BAD_MODEL, "part 1 of 2 of a split model"),
        ("--model other", ExitCode.BAD_MODEL, "other/config.json: architecture 'PhiForCausalLM' is not supported, only Llama"),
        ("--model few-bits", ExitCode.BAD_MODEL, "few-bits/config.json: quantization_config.quant_method 'bitsandbytes' is not"),
        ("--model good.gguf --load-format dummy", ExitCode.BAD_MODEL, "good.gguf is a GGUF file, which has weights: give"),
        ("--model good.gguf --kv-cache-memory 500T", ExitCode.OUT_OF_MEMORY, "--kv-cache-memory 500000000000000: this host has"),
    ],
)  # fmt: skip
def test_refusals(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], arguments: str, code: int, message: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["engine-launch", "--port", "0", "--device", "sim", *arguments.split()])
    assert main() == code
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.startswith("engine-launch: ") and message in said.err and said.err.count("\n") == 1
    assert list((place / "run").iterdir()) == []


@pytest.mark.parametrize("taken", ["port", "socket"])
def test_addresses_of_others(place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], taken: str) -> None:
    other = ListeningSocket(place / "api.sock")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1] if taken == "port" else 0
        addresses = ["--port", str(port), *(["--ipc", "api.sock"] if taken == "socket" else [])]
        monkeypatch.setattr(sys, "argv", ["engine-launch", "--model", "Org/Absent", "--device", "sim", *addresses])
        assert main() == ExitCode.ADDRESS_IN_USE
    assert "is taken" in capfd.readouterr().err
    assert (place / "api.sock").is_socket()
    other.close()


def test_a_refusal_needs_none_of_the_heavy_libraries(place: Path) -> None:
    program = "import sys; from frontend.launcher.__main__ import main; print(main(), *sys.modules)"
    arguments = ["--port", "0", "--device", "cpu", "--model", "other"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True, timeout=60)
    code, *modules = done.stdout.split()
    assert code == str(ExitCode.BAD_MODEL), done.stderr
    heavy = {"jax", "tokenizers", "jinja2", "starlette", "zmq", "gguf", "safetensors", "rich", "psutil"}
    assert heavy & set(modules) == set()
