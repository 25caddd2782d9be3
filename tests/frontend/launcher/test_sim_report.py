"""`--sim-report`: what of the engine it decides, and which flags and models contradict it. And `--compiled`, for real devices."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from frontend.launcher.options import read_options
from protocol.config import EngineConfig
from protocol.errors import ConfigError
from protocol.model_sizes import ModelSizes
from tests.model_writer import write_gguf
from tests.roofline_report import roofline_report

SIZES = ModelSizes(2, 8, 1, 1, 8, 8, 0, 10)
REPORT = roofline_report(sizes=SIZES, max_num_seqs=32, max_num_batched_tokens=64, max_model_len=200)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ENGINE_SOCKET", raising=False)
    monkeypatch.chdir(tmp_path)
    write_gguf(tmp_path / "m.gguf")
    return tmp_path


def read(place: Path, *arguments: str, device: str = "sim", **changes: Any) -> tuple[EngineConfig, list[str]]:
    (place / "r.json").write_bytes(msgspec.json.encode(replace(REPORT, **changes)))
    return read_options(["--model", "m.gguf", "--device", device, "--port", "0", *arguments])


def test_the_engine_is_as_large_as_the_report_says(place: Path) -> None:
    config, remarks = read(place, "--sim-report", "r.json", tensor_parallel_size=4)
    assert (config.max_num_seqs, config.max_num_batched_tokens, config.max_model_len) == (32, 64, 200)
    assert (config.tensor_parallel_size, config.simulated.report, remarks) == (4, str(place / "r.json"), [])


def test_flags_say_otherwise(place: Path) -> None:
    flags = ("--max-num-seqs", "16", "--max-num-batched-tokens", "32", "--max-model-len", "100", "--block-size", "16")
    config, _ = read(place, "--sim-report", "r.json", *flags)
    assert (config.max_num_seqs, config.max_num_batched_tokens, config.max_model_len, config.block_size) == (16, 32, 100, 16)
    assert read(place, "--sim-report", "r.json", max_model_len=10_000)[0].max_model_len == 256  # what the model was made for
    config, remarks = read(place, "--sim-report", "r.json", "--sim-decode-us", "7")
    assert (config.simulated.decode_us, remarks) == (2000.0, ["--sim-decode-us has no effect beside --sim-report"])


def test_it_is_for_the_simulated_device(place: Path) -> None:
    config, remarks = read(place, "--sim-report", "absent.json", device="cpu")
    assert "--sim-report has no effect without --device sim" in remarks
    assert config.max_num_seqs == 256


@pytest.mark.parametrize(
    ("flags", "changes", "message"),
    [
        (
            "",
            {"model_digest": "a larger one"},
            r"is of small \(a larger one\), and --model is of another one \(2 layers of w",
        ),
        ("", {"num_blocks": 0}, "small does not fit on v6e:1x1: make one where it does"),
        ("", {"version": 7}, "a report of version 7, and this engine reads 1: make it again with engine-aot --json"),
        (
            "--tensor-parallel-size 2",
            {},
            "--tensor-parallel-size 2: --sim-report .* is of --tensor-parallel-size 1: leave",
        ),
        ("--quantization int8", {}, "--quantization int8: --sim-report .* is of --quantization none"),
        ("--dtype float32", {}, "--dtype float32: --sim-report .* is of --dtype bfloat16"),
        ("--max-model-len 300", {}, "--max-model-len 300 is more than the 256 tokens that the model was made for"),
    ],
)
def test_what_contradicts_it(place: Path, flags: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(place, "--sim-report", "r.json", *flags.split(), **changes)


def test_compiled_programs(place: Path) -> None:
    (place / "saved").mkdir(mode=0o700)
    assert read(place, "--compiled", "saved", device="cpu")[0].compiled == str(place / "saved")
    assert read(place, "--save-compiled", "made", device="cpu")[0].save_compiled == str(place / "made")
    assert (place / "made").stat().st_mode & 0o777 == 0o700
    config, remarks = read(place, "--compiled", "saved")
    assert (config.compiled, remarks) == ("", ["--compiled has no effect with --device sim"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--compiled absent", "--compiled absent: no such directory"),
        ("--compiled m.gguf", "--compiled m.gguf: no such directory"),
        (
            "--compiled open",
            "--compiled open: what lies there is run as it is, and others could have put it there: ",
        ),
        ("--save-compiled open", "--save-compiled open: others may write to .*open"),
        ("--save-compiled m.gguf", "--save-compiled m.gguf: .*m.gguf is no directory"),
        ("--compiled saved --save-compiled saved", "--compiled loads programs, --save-compiled puts them away: give one of them"),
    ],
)
def test_directories_that_cannot_serve(place: Path, flags: str, message: str) -> None:
    (place / "saved").mkdir(mode=0o700)
    (place / "open").mkdir()
    (place / "open").chmod(0o777)
    with pytest.raises(ConfigError, match=message):
        read(place, *flags.split(), device="cpu")
