"""Models whose logits magnify every rounding, of all families, against Hugging Face transformers: where nothing is rounded."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.margins import Margins
from tests.tpu_worker.models.test_families import BLOCK_SIZE, all_logits
from tests.tpu_worker.tiny_models import hash_of, write_model
from tests.tpu_worker.tiny_sharp import FAMILIES, FOUND, make_tensors, reference_of
from tpu_worker.platforms.choose import choose_platform
from tpu_worker.platforms.cpu import make_xla_platform
from tpu_worker.platforms.platform import Platform
from tpu_worker.weights.safetensors import SafetensorsSource

PLATFORMS = [
    make_xla_platform("float32"),
    choose_platform("cpu", "none", (), BLOCK_SIZE, {16, 32, 64, 256}, dtype="float32"),
]
BOUND = 0.01  # of a log-probability: a tenth of what is promised, and thirty times the largest of several hundred models
CLOSE = 1e-3  # logits that differ by less may change places


def cases() -> list[Any]:
    """Every family once, those that were found on every kind of kernels; the rest is slow."""
    found = []
    for name in FAMILIES:
        for platform in PLATFORMS:
            marks = [pytest.mark.slow] if platform is PLATFORMS[0] and name not in FOUND else []
            found.append(pytest.param(name, platform, id=f"{name}-{platform.name}", marks=marks))
    return found


@pytest.mark.parametrize(("name", "platform"), cases())
def test_logprobs_and_tokens_are_those_of_transformers(margins: Margins, tmp_path: Path, name: str, platform: Platform) -> None:
    reference = reference_of(name)
    tensors = make_tensors(name, reference["shapes"])
    assert reference["weights"] == hash_of(tensors), "run scripts/make_family_references.py"
    token_ids = np.array(reference["token_ids"], np.int32)
    source = SafetensorsSource(write_model(tmp_path, FAMILIES[name], tensors))
    logits = all_logits(source, platform, token_ids).astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    errors = np.abs(logprobs[np.arange(len(token_ids) - 1), token_ids[1:]] - np.array(reference["logprobs"]))
    margins.check(f"sharp, {platform.name}", errors.max().item(), BOUND)
    chosen = logits[np.arange(len(token_ids)), reference["greedy"]]
    assert (chosen > -CLOSE).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["phi4_mini", "olmo2", "found_gpt_oss", "found_qwen3_moe"])
def test_shards_change_no_token(tmp_path: Path, name: str) -> None:
    """As an engine runs them that was told nothing of types."""
    model = write_model(tmp_path, FAMILIES[name], make_tensors(name, reference_of(name)["shapes"]))
    command = [sys.executable, "-m", "tests.tpu_worker.mesh.sharded_runs", str(model), "auto", "4", "1", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    one, two = (json.loads(done.stdout)[shards]["outputs"] for shards in ("1", "2"))
    assert [two[params]["tokens"] for params in one] == [one[params]["tokens"] for params in one]
    for found, expected in zip(two["scored"]["scores"], one["scored"]["scores"], strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=BOUND)
