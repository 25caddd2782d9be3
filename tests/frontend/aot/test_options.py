"""The flags of `engine-aot`: those of `engine-launch`, checked alike, and its own."""

import importlib.util
from pathlib import Path

import pytest

from frontend.aot.options import Options, read_options
from protocol.config import EngineConfig
from protocol.errors import ConfigError, EngineError, ModelError
from protocol.model_shapes import shape_directory
from tests.model_writer import write_gguf, write_huggingface


def read(*arguments: str, environ: dict[str, str] | None = None) -> tuple[Options, list[str]]:
    return read_options(["--no-compilation-cache", *arguments], environ or {})


def test_nothing_given() -> None:
    options, remarks = read()
    shape = shape_directory("llama-3.2-1b")
    wanted = EngineConfig(
        model_path=str(shape),
        model_format="huggingface",
        served_model_names=("llama-3.2-1b",),
        device="tpu",
        load_format="dummy",
        compilation_cache="",
    )
    assert options.config == wanted and remarks == []
    assert (options.model, options.topology.name, options.context) == ("llama-3.2-1b", "v6e:1x1", 500)
    assert (options.plot, options.json, options.save) == ("", "", "") and options.jobs >= 1


def test_everything_given(tmp_path: Path) -> None:
    files = ["--plot", str(tmp_path / "a.png"), "--json", str(tmp_path / "a.json"), "--save", str(tmp_path / "programs")]
    sizes = ["--max-num-seqs", "32", "--max-num-batched-tokens", "256", "--max-model-len", "4096", "--block-size", "128"]
    memory = ["--kv-cache-memory", "2GiB", "--quantization", "int8", "--dtype", "half"]
    chips = ["--topology", "v5litepod:2x2", "--tensor-parallel-size", "4", "--context", "1000", "--jobs", "3"]
    if importlib.util.find_spec("matplotlib") is None:
        files = files[2:]
    options, remarks = read("Qwen3-8B", *files, *sizes, *memory, *chips)
    config = options.config
    assert (config.max_num_seqs, config.max_num_batched_tokens, config.max_model_len, config.block_size) == (32, 256, 4096, 128)
    assert (config.kv_cache_memory, config.quantization, config.dtype) == (2 << 30, "int8", "bfloat16")
    assert (options.topology.name, config.tensor_parallel_size, options.context, options.jobs) == ("v5e:2x2", 4, 1000, 3)
    assert options.json == str(tmp_path / "a.json") and options.save == str(tmp_path / "programs")
    assert remarks == ["--dtype half: computed in bfloat16, which rounds more, and overflows less"]


def test_a_command_line_of_the_launcher_is_taken() -> None:
    options, remarks = read(
        "--port",
        "0",
        "--workers",
        "4",
        "--device",
        "tpu",
        "-tp",
        "2",
        "--topology",
        "v6e:1x2",
        "--no-ui",
        "--compilation-cache",
        "/c",
    )
    assert options.config.tensor_parallel_size == 2 and options.config.workers == 1
    assert remarks == [
        "--compilation-cache, --port, --workers, --device, --ui: left out, since nothing of the report depends on it"
    ]


def test_flags_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_text('topology = "v5e:1x1"\nmax-num-seqs = 8\nport = 1\n')
    options, _ = read("--config", str(tmp_path / "f.toml"))
    assert (options.topology.name, options.config.max_num_seqs) == ("v5e:1x1", 8)


def test_models_with_files_and_without_weights(tmp_path: Path) -> None:
    whole, gguf = write_huggingface(tmp_path / "whole"), write_gguf(tmp_path / "small.gguf")
    small = ("--max-model-len", "128", "--context", "100")
    assert read("--model", str(whole), *small)[0].config.load_format == "auto"
    assert read("--model", str(gguf), *small)[0].config.model_format == "gguf"
    (bare := tmp_path / "bare").mkdir()
    (bare / "config.json").write_bytes((whole / "config.json").read_bytes())
    assert read("--model", str(bare), *small)[0].config.load_format == "dummy"
    with pytest.raises(ModelError, match="is a GGUF file, which has weights: leave the flag out"):
        read("--model", str(gguf), "--load-format", "dummy", *small)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--topology", "v4:2x2"], r"--topology v4:2x2: no such chip is known; possible are v5e:1x1, v6e:1x1, tpu7x:1x1x1"),
        (["--topology", "v6e:3x3"], r"--topology v6e:3x3: .*possible are v6e:1x1, v6e:1x2"),
        (["--tensor-parallel-size", "2"], r"--tensor-parallel-size 2: --topology v6e:1x1 has 1 devices.*larger topology: v6e:1x2"),
        (
            ["--tensor-parallel-size", "3", "--topology", "v6e:2x2"],
            r"--tensor-parallel-size 3 does not divide.*possible are 1, 2, 4",
        ),
        (["--max-model-len", "1000000"], r"--max-model-len 1000000 is more than the 131072 tokens"),
        (["--max-num-batched-tokens", "16"], r"--max-num-batched-tokens 16: at least --max-num-seqs \(256\)"),
        (["--dtype", "float32", "--quantization", "int8"], "rounds nothing"),
        (["--context", "0"], "--context 0: a whole number from 1"),
        (["--context", "500", "--max-model-len", "400"], "--context 500: is more than a row may have, 400 tokens"),
        (["--jobs", "0"], "--jobs 0: a whole number from 1 to 64"),
        (["--json", "/nowhere/at/all.json"], "--json /nowhere/at/all.json: there is no directory /nowhere/at"),
        (["--json", "/"], "--json /: is a directory"),
        (["--model", "nothing"], "--model nothing: no such file or directory"),
        (["--model", "a", "b"], "one MODEL is wanted; see engine-aot --help"),
        (["--topologie", "v6e:1x1"], "--topologie: there is no such flag; did you mean --topology?"),
        (["--topology"], "expected one argument; see engine-aot --help"),
        (
            ["--plot", "picture.exe"],
            r"--plot picture.exe: (a name that ends in one of .png, .svg, .pdf|matplotlib is not installed)",
        ),
        (["--plot", "a.png", "--topology", "h100"], r"--plot a.png: the compiler for NVIDIA H100 80GB estimates no times"),
        (["--check"], "--check: there is no such flag"),
    ],
)
def test_what_cannot_be_says_the_flag_and_what_is_possible(arguments: list[str], why: str) -> None:
    with pytest.raises(EngineError, match=why):
        read(*arguments)


def test_a_picture_without_what_draws_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", {}.get)
    with pytest.raises(ConfigError, match=r"--plot a.png: matplotlib is not installed: add twodeep\[plot\]"):
        read("--plot", "a.png")


def test_the_help_names_what_matters_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        read("--help")
    said = capsys.readouterr().out
    assert left.value.code == 0
    for flag in ("--topology", "--context", "--jobs", "--plot", "--json", "--save", "--max-num-seqs", "--block-size"):
        assert flag in said
    assert "--port" not in said and "--check" not in said and "gemma-3-270m" in said
