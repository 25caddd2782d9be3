"""Tiny Llama models with random weights, written as Hugging Face directories, and what they compute, in NumPy."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,  # not hidden_size / heads: read from the file
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500.0,
    "tie_word_embeddings": False,
}
Tensors = dict[str, npt.NDArray[Any]]


def make_tensors(config: Mapping[str, Any], seed: int = 0) -> Tensors:
    """Random bfloat16 tensors under their Hugging Face names, large enough that attention and rotation matter."""
    rng = np.random.default_rng(seed)
    hidden, mlp, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q_size, kv_size = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    shapes: dict[str, tuple[int, ...]] = {"model.norm.weight": (hidden,)}
    shapes["model.embed_tokens.weight"] = (config["vocab_size"], hidden)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, rows, columns in (
            ("self_attn.q_proj", q_size, hidden),
            ("self_attn.k_proj", kv_size, hidden),
            ("self_attn.v_proj", kv_size, hidden),
            ("self_attn.o_proj", hidden, q_size),
            ("mlp.gate_proj", mlp, hidden),
            ("mlp.up_proj", mlp, hidden),
            ("mlp.down_proj", hidden, mlp),
        ):
            shapes[f"{prefix}{name}.weight"] = (rows, columns)
            if config.get("mlp_bias" if "mlp" in name else "attention_bias"):
                shapes[f"{prefix}{name}.bias"] = (rows,)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}{name}.weight"] = (hidden,)
    tensors: Tensors = {}
    for name, shape in shapes.items():
        spread = 1.5 / np.sqrt(shape[-1]) if len(shape) > 1 else 0.3
        values = rng.normal(1.0 if "norm" in name else 0.0, spread, shape)
        tensors[name] = values.astype(ml_dtypes.bfloat16)
    return tensors


def write_model(directory: Path, config: Mapping[str, Any], tensors: Tensors, shards: int = 1) -> Path:
    """A directory as `save_pretrained` leaves it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, directory / "model.safetensors")
        return directory
    weight_map = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name, where in weight_map.items() if where == file}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def reference_logits(config: Mapping[str, Any], tensors: Tensors, token_ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Logits [T, V] of a whole sequence at once: the textbook's transformer in float64, with nothing cached, fused or batched."""
    weights = {name: values.astype(np.float64) for name, values in tensors.items()}
    heads, kv_heads, dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    length, eps = len(token_ids), config["rms_norm_eps"]
    angles = np.arange(length)[:, None] * config["rope_theta"] ** -(np.arange(0, dim, 2) / dim)
    turn = np.exp(1j * angles)[:, None, :]

    def project(x: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
        return x @ weights[name + ".weight"].T + weights.get(name + ".bias", 0.0)

    def norm(x: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weights[name + ".weight"]  # type: ignore[no-any-return]

    def rotate(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        turned = (x[..., : dim // 2] + 1j * x[..., dim // 2 :]) * turn
        return np.concatenate([turned.real, turned.imag], axis=-1)

    x = weights["model.embed_tokens.weight"][token_ids]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        h = norm(x, prefix + "input_layernorm")
        q = rotate(project(h, prefix + "self_attn.q_proj").reshape(length, heads, dim))
        k = rotate(project(h, prefix + "self_attn.k_proj").reshape(length, kv_heads, dim))
        v = project(h, prefix + "self_attn.v_proj").reshape(length, kv_heads, dim)
        k, v = np.repeat(k, heads // kv_heads, axis=1), np.repeat(v, heads // kv_heads, axis=1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(dim)
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        attended = np.einsum("hqk,khd->qhd", shares, v).reshape(length, -1)
        x = x + project(attended, prefix + "self_attn.o_proj")
        h = norm(x, prefix + "post_attention_layernorm")
        gate = project(h, prefix + "mlp.gate_proj")
        x = x + project(gate / (1 + np.exp(-gate)) * project(h, prefix + "mlp.up_proj"), prefix + "mlp.down_proj")
    head = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
    return norm(x, "model.norm") @ weights[head].T
