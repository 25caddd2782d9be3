"""Tiny models of all families whose logits are sharper than trained ones': weights so large that every layer magnifies roundings.

Nothing is made easy for them: routers may be undecided, and half of the checkpoints are float32. Among them are those whose
log-probabilities bfloat16 moved most, of a hundred that transformers drew.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tests.tpu_worker import tiny_dense, tiny_experts, tiny_models
from tests.tpu_worker.tiny_models import Tensors

SPREAD = 2.0  # of what a matrix makes of inputs with a root mean square of one

# Of a hundred at random; beside each how far bfloat16 moved a log-probability.
FOUND: dict[str, dict[str, Any]] = {
    "found_mixtral": {  # 3.4
        **tiny_experts.MIXTRAL,
        "vocab_size": 128,
        "hidden_size": 128,
        "intermediate_size": 64,
        "num_hidden_layers": 6,
        "num_key_value_heads": 4,
        "num_local_experts": 8,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
    },
    "found_gpt_oss": {  # 3.0
        **tiny_experts.GPT_OSS,
        "hidden_size": 128,
        "intermediate_size": 80,
        "num_hidden_layers": 8,
        "num_attention_heads": 2,
        "head_dim": 64,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "rms_norm_eps": 1e-6,
    },
    "found_qwen3_moe": {  # 2.0
        **{name: value for name, value in tiny_experts.QWEN3_MOE.items() if name != "num_experts"},
        "hidden_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "head_dim": 64,
        "moe_intermediate_size": 64,
        "num_local_experts": 16,  # as transformers 5 writes it
        "num_experts_per_tok": 2,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
    "found_mistral": {  # 1.2
        **tiny_models.FAMILIES["mistral"],
        "vocab_size": 128,
        "hidden_size": 128,
        "intermediate_size": 64,
        "num_hidden_layers": 8,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "sliding_window": 16,
        "rope_theta": 1e4,
    },
    "found_ministral3": {  # 0.9
        **tiny_dense.FAMILIES["ministral3"],
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 2,
        "tie_word_embeddings": True,
    },
}
FAMILIES: dict[str, dict[str, Any]] = {
    **{name.replace(" ", "_"): config for name, config in tiny_models.FAMILIES.items()},
    **tiny_experts.FAMILIES,
    **tiny_dense.FAMILIES,
    **FOUND,
}
REFERENCES = Path(__file__).parents[1] / "data/sharp"
_FLOAT32 = frozenset(list(FAMILIES)[::2])  # whose checkpoints are


def make_tensors(name: str, shapes: Mapping[str, Sequence[int]], seed: int = 0) -> Tensors:
    """Random tensors of these shapes, in the type of this model's checkpoint."""
    config, rng = FAMILIES[name], np.random.default_rng(seed)
    middle = 0.0 if config["architectures"][0].startswith("Gemma") else 1.0  # of norms: Gemma's are stored less 1
    tensors: Tensors = {}
    for tensor, shape in shapes.items():
        turned = config["model_type"] == "gpt_oss" and ".experts." in tensor  # [experts, in, out]
        is_matrix = len(shape) > 1 and not tensor.endswith("_bias")
        spread = SPREAD / np.sqrt(shape[-2] if turned else shape[-1]) if is_matrix else 0.3
        values = rng.normal(middle if "norm" in tensor else 0.0, spread, tuple(shape))
        tensors[tensor] = values.astype(np.float32 if name in _FLOAT32 else ml_dtypes.bfloat16)
    return tensors


def reference_of(name: str) -> dict[str, Any]:
    """What transformers computes, as scripts/make_family_references.py keeps it."""
    reference: dict[str, Any] = json.loads((REFERENCES / f"{name}.json").read_text())
    return reference
