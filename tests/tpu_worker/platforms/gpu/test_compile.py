"""The step of the engine, compiled for GPUs that are not there: nothing large is copied, and little memory is needed beside it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from protocol.aot_report import read_report
from tests.clients.environments import Environment
from tests.tpu_worker.platforms.tpu.test_compile import LAYERS, LLAMA_1B, LLAMA_8B

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("COMPILE_FOR_GPUS" not in os.environ, reason="COMPILE_FOR_GPUS=1 has JAX's CUDA plugin downloaded for it"),
    pytest.mark.timeout(900),  # a program takes three seconds alone, and many where others compile too
]

DECODE, MIXED = "64x64", "512x16"  # tokens x rows
NUM_BLOCKS = 8192  # of `compile_steps`
MOST_TEMPORARIES = {DECODE: 64 << 20, MIXED: 96 << 20}  # bytes: a copy of a layer's cache would take 268 MB, of tokens 134 MB
MOST_BESIDE = 256 << 20  # bytes of tokens, rotary tables, block tables: a second table of embeddings would take 525 MB


@pytest.fixture(scope="module")
def plugin() -> Path:
    """Where JAX's CUDA plugin is, 132 MB of download: XLA for GPUs with its compilers, of the age of the JAX that runs here."""
    version = jax.__version__
    packages = Environment("cuda-plugin", (f"jax-cuda13-plugin=={version}", f"jax-cuda13-pjrt=={version}"))
    try:
        python = packages.python()
    except AssertionError as error:
        pytest.skip(f"JAX's CUDA plugin cannot be had, so nothing compiles for GPUs: {error}")
    (directory,) = python.parents[1].glob("lib/python*/site-packages")
    return directory


def environment(plugin: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(plugin), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}


def run(plugin: Path, module: str, *arguments: str) -> dict[str, Any]:
    """What one of the programs beside this file writes."""
    command = [sys.executable, "-m", f"tests.tpu_worker.platforms.gpu.{module}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(plugin), check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def compile_steps(plugin: Path, path: Path, model: dict[str, Any], *arguments: str) -> dict[str, Any]:
    config = path / "config.json"
    config.write_text(json.dumps(model), encoding="utf-8")
    return run(plugin, "compile_steps", str(config), *arguments)


def bytes_of(model: dict[str, Any], chips: int, block_size: int) -> int:
    """Weights of one of several GPUs and the cache of `compile_steps`; tied embeddings once."""
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")
    hidden, mlp, heads, kv_heads, dim, vocab = (int(model[name]) for name in names)
    layer = hidden * (2 * heads * dim + 2 * kv_heads * dim + 3 * mlp)
    tables = vocab * hidden * (1 if model["tie_word_embeddings"] else 2)
    cache = 2 * NUM_BLOCKS * block_size * kv_heads * dim
    return 2 * (LAYERS * (layer + cache) + tables) // chips


@pytest.mark.parametrize(
    ("model", "gpu", "chips"),
    [(LLAMA_1B, "h100", 1), (LLAMA_8B, "h100", 4)],
    ids=["1B on an H100", "8B on four of H100"],
)
def test_nothing_large_is_copied(model: dict[str, Any], gpu: str, chips: int, plugin: Path, tmp_path: Path) -> None:
    found = compile_steps(plugin, tmp_path, model, gpu, str(chips), "Triton", DECODE, MIXED)
    arguments = bytes_of(model, chips, found["block_size"])
    for bucket in (DECODE, MIXED):
        program = found[bucket]
        assert program["copies"] == []
        assert program["temporaries"] < MOST_TEMPORARIES[bucket]
        assert arguments < program["arguments"] < arguments + MOST_BESIDE
        several = LAYERS if bucket == MIXED else 0
        assert program["kernels"] == {"attend_splits": LAYERS, "merge_splits": LAYERS, "attend_chunks": several}
        if chips == 1:
            assert program["collectives"] == {"all-reduce": 0, "all-gather": 0}
        else:  # for the embedding, and in each layer behind attention and behind the MLP; for the logits
            assert program["collectives"] == {"all-reduce": 1 + 2 * LAYERS, "all-gather": 1}


def test_copies_are_found_where_there_are_some(plugin: Path, tmp_path: Path) -> None:
    model = {**LLAMA_1B, "num_hidden_layers": 1}
    program = compile_steps(plugin, tmp_path, model, "h100", "1", "swapped", "4x4")["4x4"]
    assert any("[8192,16,2,8,64]" in copy for copy in program["copies"])
    assert program["temporaries"] > MOST_TEMPORARIES[DECODE]


@pytest.mark.parametrize("gpu", ["h100", "l4"])
def test_heads_of_every_family_compile(gpu: str, plugin: Path) -> None:
    """An L4 has less than half of an H100's shared memory, and other tensor cores."""
    found = run(plugin, "compile_attention", gpu)
    assert len(found) >= 7
    assert all(copies == [[], []] for copies in found.values())


def test_engine_aot_compiles_a_whole_engine_and_knows_no_times(plugin: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA_1B, "num_hidden_layers": LAYERS}), encoding="utf-8")
    flags = ["--model", str(tmp_path), "--topology", "h100", "--max-num-seqs", "4", "--max-num-batched-tokens", "16", "--jobs", "1"]
    flags += ["--max-model-len", "2048", "--json", str(tmp_path / "report.json")]
    command = [sys.executable, "-m", "frontend.aot", "--load-format", "dummy", *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(plugin), check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    report = read_report(str(tmp_path / "report.json"), "--json")
    assert (report.topology, report.chip) == ("h100:1", "NVIDIA H100 80GB") and "jax-cuda13-pjrt" in report.versions
    steps = [program for program in report.programs if program.tokens]
    assert [step.name for step in steps] == ["step 4x4", "step 16x4"]
    assert all(step.roofline > 0 and step.time is None and not step.copies for step in steps)
    assert "estimates no times" in done.stdout
