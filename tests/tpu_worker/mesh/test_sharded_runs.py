"""The same tokens from one, two and four chips."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tpu_worker import tiny_experts
from tests.tpu_worker.tiny_models import FAMILIES, make_tensors, write_model

LAYERS = 2
PARAMS = ("greedy", "seeded", "penalties", "masked", "masked and drawn", "rules")
# More chips than heads of keys, and a vocabulary that does not divide.
SIZES = {"num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 97, "num_hidden_layers": LAYERS}


@pytest.mark.parametrize(
    ("family", "dtype", "budget", "sizes"),
    # with biases everywhere; with norms of queries and keys
    [
        pytest.param("llama", "float32", 64, ("2",), marks=pytest.mark.slow),
        pytest.param("qwen3", "bfloat16", 4, ("4",), marks=pytest.mark.slow),
    ],
)
def test_shards_change_no_token(family: str, dtype: str, budget: int, sizes: tuple[str, ...], tmp_path: Path) -> None:
    config = {**FAMILIES[family], **SIZES}
    model = write_model(tmp_path, config, make_tensors(config))
    command = [sys.executable, "-m", "tests.tpu_worker.mesh.sharded_runs", str(model), dtype, str(budget), "1", *sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    runs: dict[str, dict[str, Any]] = json.loads(done.stdout)
    one = runs["1"]
    assert one["description"] == "cpu (XLA kernels)" and not any(one["collectives"].values())
    assert len({tuple(tokens) for name, output in one["outputs"].items() for tokens in output["tokens"] if name in PARAMS}) == 24
    for shards in sizes:
        several = runs[shards]
        assert several["description"] == f"cpu x{shards} (XLA kernels)"
        for name, output in several["outputs"].items():
            assert output["tokens"] == one["outputs"][name]["tokens"], (shards, name)
        errors = np.array(several["outputs"]["greedy"]["logprobs"]) - np.array(one["outputs"]["greedy"]["logprobs"])
        bound = 1e-3 if dtype == "float32" else 0.05
        assert np.abs(errors).max() < bound
        for pooling in ("last", "mean"):
            found, expected = (np.array(run["outputs"][f"pooled, {pooling}"]["embeddings"]) for run in (several, one))
            assert np.abs(found - expected).max() < bound * np.sqrt(np.mean(expected**2))
        if "scored" in one["outputs"]:
            for scores, expected in zip(several["outputs"]["scored"]["scores"], one["outputs"]["scored"]["scores"], strict=True):
                assert np.abs(np.array(scores) - np.array(expected)).max() < bound
        # One for the embedding, and in each layer one behind attention and one behind the MLP; of each row each shard's largest
        # logit is gathered.
        assert several["collectives"] == {"all-reduce": 1 + 2 * LAYERS, "all-gather": 1, "all-to-all": 0, "collective-permute": 0}


@pytest.mark.slow
@pytest.mark.parametrize("num_experts", [8, 6], ids=["dealt out", "each of them cut"])
def test_experts_on_several_chips_change_no_token(num_experts: int, tmp_path: Path) -> None:
    """With biases, which are added once, and sinks, which are cut like heads."""
    config = {**tiny_experts.FAMILIES["gpt_oss"], **SIZES, "num_local_experts": num_experts}
    model = write_model(tmp_path, config, tiny_experts.make_tensors(config))
    command = [sys.executable, "-m", "tests.tpu_worker.mesh.sharded_runs", str(model), "bfloat16", "64", "1", "2", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    runs: dict[str, dict[str, Any]] = json.loads(done.stdout)
    for shards in ("2", "4"):
        for name, output in runs[shards]["outputs"].items():
            assert output["tokens"] == runs["1"]["outputs"][name]["tokens"], (shards, name)
        collectives = {"all-reduce": 1 + 2 * LAYERS, "all-gather": 1, "all-to-all": 0, "collective-permute": 0}
        assert runs[shards]["collectives"] == collectives
