"""`engine-aot` with the real compiler: every program of an engine, for a TPU that is not there."""

import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.aot_report import read_report
from protocol.chips import CHIPS
from protocol.model_sizes import ModelSizes
from tests.model_writer import write_huggingface
from tpu_worker.buckets import make_buckets
from tpu_worker.simulated_times import ReportedTimes, required_programs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: nothing compiles for TPUs"),
    pytest.mark.timeout(600),  # forty seconds alone
]
SIZES = {"num_hidden_layers": 2, "hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 2}
SEQS, TOKENS = 4, 16


def test_all_programs_compile_fit_and_copy_nothing(tmp_path: Path) -> None:
    model = write_huggingface(tmp_path / "Tiny", head_dim=64, vocab_size=4096, max_position_embeddings=131072, **SIZES)
    (model / "model.safetensors").unlink()
    report = tmp_path / "v6e.json"
    # With a cache of half a gigabyte: a small one would be kept in vector memory, as none that serves is.
    flags = ["--model", str(model), "--load-format", "dummy", "--dtype", "bfloat16", "--topology", "v6e:1x1", "--jobs", "1"]
    flags += ["--max-num-seqs", str(SEQS), "--max-num-batched-tokens", str(TOKENS), "--no-compilation-cache"]
    command = [sys.executable, "-m", "frontend.aot", *flags, "--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = read_report(str(report), "--json")
    assert found.padding_costs and found.hbm == CHIPS["v6e"].memory
    buckets = make_buckets(SEQS, TOKENS, padding_costs=True)
    programs = {program.name: program for program in found.programs}
    assert sorted(programs) == sorted(required_programs(buckets))
    for program in programs.values():
        assert program.error == "" and program.copies == () and program.collectives == {}
        assert program.time is not None and all(math.isfinite(part) and part >= 0 for part in program.parts.values())
    cache = found.num_blocks * found.bytes_per_block
    assert found.cache_of_row == found.context * found.bytes_per_block // found.block_size
    for bucket in buckets:
        step = programs[f"step {bucket.tokens}x{bucket.rows}"]
        assert found.weights + cache < step.arguments < found.weights + cache + (16 << 20)
        assert step.temporaries < 16 << 20
        # A kernel for each layer, of which each decoding row is work, takes time beside what the compiler counts.
        assert step.time is not None and step.parts["attention"] > step.time.per_row > 0
        assert (step.time.per_pair > 0) == (bucket.tokens > bucket.rows)
        assert 0 < step.roofline <= sum(step.parts.values())
    sizes = ModelSizes.parse(found.model_digest)
    assert sizes is not None and ReportedTimes(found, str(report), sizes, SEQS, TOKENS) is not None
