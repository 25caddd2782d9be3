"""Writes tests/data/family_references.json: what Hugging Face transformers computes, in float32, on the tests' tiny models.

    python scripts/make_family_references.py tests/data/family_references.json

Those of mixtures of experts are written to files of their own, in the directory families beside it.

Run it from the repository's root, in an environment of its own with torch, transformers, numpy, ml_dtypes and safetensors: neither
of the first two is a dependency of the engine. The weights are those of `tests/tpu_worker/tiny_models.py` and `tiny_experts.py`; a
hash of them tells a test when they are no longer the same.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.tpu_worker import tiny_experts
from tests.tpu_worker.tiny_models import FAMILIES, Tensors, hash_of, make_tensors, write_model

LENGTH = 96  # tokens: more than four windows, and three times the context that the scaled rotation begins at


@torch.no_grad()
def reference_of(name: str, config: dict[str, Any], tensors: Tensors) -> dict[str, Any]:
    """What transformers computes of a forced continuation."""
    with tempfile.TemporaryDirectory() as directory:
        model = AutoModelForCausalLM.from_pretrained(
            write_model(Path(directory), config, tensors), dtype=torch.float32, attn_implementation="eager"
        )
    token_ids = np.random.default_rng(2).integers(0, config["vocab_size"], LENGTH)
    logits = model.eval()(torch.from_numpy(token_ids[None])).logits[0].double()
    logprobs = logits.log_softmax(-1)[torch.arange(LENGTH - 1), torch.from_numpy(token_ids[1:])]
    reference = {
        "weights": hash_of(tensors),
        "token_ids": token_ids.tolist(),
        "logprobs": [round(value, 5) for value in logprobs.tolist()],  # of token i + 1 after the first i + 1
        "greedy": logits.argmax(-1).tolist(),
    }
    print(name, f"{logprobs.mean():.3f}", reference["greedy"][:8])
    return reference


def main() -> None:
    path = Path(sys.argv[1])
    references = {name: reference_of(name, config, make_tensors(config)) for name, config in FAMILIES.items()}
    rows = ",\n".join(f"{json.dumps(name)}:{json.dumps(row, separators=(',', ':'))}" for name, row in references.items())
    path.write_text(f"{{\n{rows}\n}}\n")
    for name, config in tiny_experts.FAMILIES.items():
        reference = reference_of(name, config, tiny_experts.make_tensors(config))
        (path.parent / "families" / f"{name}.json").write_text(json.dumps(reference, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
