"""Writes family_references.json, families/ and sharp/ of tests/data: what transformers computes of tiny models, in float32.

    python scripts/make_family_references.py tests/data/family_references.json [NAME …]

Without names all are written; with names those of the directories families and sharp beside it, each to a file of its own. A name
as sharp/NAME is one of the latter.

Run it from the repository's root, in an environment of its own with torch, transformers, numpy, ml_dtypes, gguf and safetensors:
neither of the first two is a dependency of the engine. The weights are those of `tests/tpu_worker/tiny_models.py`,
`tiny_experts.py`, `tiny_dense.py` and `tiny_sharp.py`; a hash of them tells a test when they are no longer the same.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.tpu_worker import tiny_dense, tiny_experts, tiny_sharp
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


def shapes_of(config: dict[str, Any]) -> dict[str, list[int]]:
    """The tensors of a checkpoint, as transformers names them."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(config))
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    tied = config["tie_word_embeddings"]
    return {name: list(one.shape) for name, one in model.state_dict().items() if not (tied and name == "lm_head.weight")}


def main() -> None:
    path, names = Path(sys.argv[1]), sys.argv[2:]
    if not names:
        references = {name: reference_of(name, config, make_tensors(config)) for name, config in FAMILIES.items()}
        rows = ",\n".join(f"{json.dumps(name)}:{json.dumps(row, separators=(',', ':'))}" for name, row in references.items())
        path.write_text(f"{{\n{rows}\n}}\n")

    def write(name: str, reference: dict[str, Any], directory: str = "families") -> None:
        (path.parent / directory).mkdir(exist_ok=True)
        (path.parent / directory / f"{name}.json").write_text(json.dumps(reference, separators=(",", ":")) + "\n")

    for name, config in tiny_experts.FAMILIES.items():
        if not names or name in names:
            write(name, reference_of(name, config, tiny_experts.make_tensors(config)))
    for name, config in tiny_dense.FAMILIES.items():
        if not names or name in names:
            shapes = shapes_of(config)
            write(name, {**reference_of(name, config, tiny_dense.make_tensors(config, shapes)), "shapes": shapes})
    for name, config in tiny_sharp.FAMILIES.items():
        if not names or f"sharp/{name}" in names:
            shapes = shapes_of(config)
            reference = reference_of(name, config, tiny_sharp.make_tensors(name, shapes))
            write(name, {**reference, "shapes": shapes}, "sharp")


if __name__ == "__main__":
    main()
