"""Writes tests/data/family_references.json: what Hugging Face transformers computes, in float32, on the tests' tiny models.

    python scripts/make_family_references.py tests/data/family_references.json

Run it from the repository's root, in an environment of its own with torch, transformers, numpy, ml_dtypes and safetensors: neither
of the first two is a dependency of the engine. The weights are those of `tests/tpu_worker/tiny_models.py`; a hash of them tells a
test when they are no longer the same.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.tpu_worker.tiny_models import FAMILIES, hash_of, make_tensors, write_model

LENGTH = 96  # tokens: more than four windows, and three times the context that the scaled rotation begins at


@torch.no_grad()
def main() -> None:
    references = {}
    for name, config in FAMILIES.items():
        tensors = make_tensors(config)
        with tempfile.TemporaryDirectory() as directory:
            model = AutoModelForCausalLM.from_pretrained(
                write_model(Path(directory), config, tensors), dtype=torch.float32, attn_implementation="eager"
            )
        token_ids = np.random.default_rng(2).integers(0, config["vocab_size"], LENGTH)
        logits = model.eval()(torch.from_numpy(token_ids[None])).logits[0].double()
        logprobs = logits.log_softmax(-1)[torch.arange(LENGTH - 1), torch.from_numpy(token_ids[1:])]
        references[name] = {
            "weights": hash_of(tensors),
            "token_ids": token_ids.tolist(),
            "logprobs": [round(value, 5) for value in logprobs.tolist()],  # of token i + 1 after the first i + 1
            "greedy": logits.argmax(-1).tolist(),
        }
        print(name, f"{logprobs.mean():.3f}", references[name]["greedy"][:8])
    rows = ",\n".join(f"{json.dumps(name)}:{json.dumps(row, separators=(',', ':'))}" for name, row in references.items())
    Path(sys.argv[1]).write_text(f"{{\n{rows}\n}}\n")


if __name__ == "__main__":
    main()
