"""Tiny models with random weights, written as Hugging Face directories and GGUF files, and what they compute, in NumPy."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from gguf.quants import quantize
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
QWEN2 = {**CONFIG, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "head_dim": 16}

# One of each family, for whose forced continuations tests/data/family_references.json holds what transformers computes. What could
# be overlooked is set so that it matters within 100 tokens: scaled rotation, windows, heads wider than hidden_size / heads.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {
        **CONFIG,
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": True,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "mistral": {**CONFIG, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 21},
    "qwen2": {**QWEN2, "tie_word_embeddings": True},
    "qwen2 with windows": {
        **QWEN2,
        "num_hidden_layers": 3,
        "use_sliding_window": True,
        "sliding_window": 21,
        "max_window_layers": 1,
    },
    "qwen3": {**CONFIG, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "rope_theta": 5000.0},
}


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
            if _has_bias(config, name):
                shapes[f"{prefix}{name}.bias"] = (rows,)
        if config["architectures"] == ["Qwen3ForCausalLM"]:
            shapes |= {f"{prefix}self_attn.{name}_norm.weight": (dim,) for name in ("q", "k")}
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}{name}.weight"] = (hidden,)
    tensors: Tensors = {}
    for name, shape in shapes.items():
        spread = 1.5 / np.sqrt(shape[-1]) if len(shape) > 1 else 0.3
        values = rng.normal(1.0 if "norm" in name else 0.0, spread, shape)
        tensors[name] = values.astype(ml_dtypes.bfloat16)
    return tensors


def _has_bias(config: Mapping[str, Any], name: str) -> bool:
    if config["architectures"] == ["Qwen2ForCausalLM"]:
        return name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    return bool(config.get("mlp_bias" if "mlp" in name else "attention_bias"))


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


def write_gguf(
    path: Path,
    config: Mapping[str, Any],
    tensors: Tensors,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    second: GGMLQuantizationType | None = None,
) -> Path:
    """The same as llama.cpp's converter writes it, in tensors of this type, those of layer 1 of the second."""
    arch = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}[
        config["architectures"][0]
    ]
    names = get_tensor_name_map({value: key for key, value in MODEL_ARCH_NAMES.items()}[arch], config["num_hidden_layers"])
    writer = GGUFWriter(path, arch)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    if (scaling := config.get("rope_scaling")) is not None:
        writer.add_tensor("rope_freqs.weight", _llama3_divisors(config["rope_theta"], config["head_dim"], scaling))
    for name, tensor in tensors.items():
        values = tensor.astype(np.float32)
        for projection, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if projection in name and arch == "llama":  # its rotary pairs lie side by side
                values = values.reshape(config[heads], 2, config["head_dim"] // 2, -1).swapaxes(1, 2).reshape(values.shape)
        stored = second if second is not None and "layers.1." in name else kind
        theirs = names.get_name(name, (".weight", ".bias")) or name
        if stored != GGMLQuantizationType.F32 and values.ndim == 2 and values.shape[1] % 32 == 0:
            writer.add_tensor(theirs, quantize(values, stored), raw_dtype=stored)
        else:
            writer.add_tensor(theirs, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _llama3_divisors(theta: float, head_dim: int, scaling: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """What each rotary frequency is divided by, one by one, as Llama 3.1's description has it."""
    divisors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * np.pi * theta ** (i / head_dim)
        turns = scaling["original_max_position_embeddings"] / wavelength  # within the original context
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        if turns > high:
            divisors.append(1.0)
        elif turns < low:
            divisors.append(scaling["factor"])
        else:
            share = (turns - low) / (high - low)
            divisors.append(1 / ((1 - share) / scaling["factor"] + share))
    return np.array(divisors, np.float32)


def hash_of(tensors: Tensors) -> str:
    """The same for the same names, types and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()[:16]


def reference_logits(config: Mapping[str, Any], tensors: Tensors, token_ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Logits [T, V] of a whole sequence at once."""
    head = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
    return reference_states(config, tensors, token_ids) @ tensors[head].astype(np.float64).T


def reference_states(config: Mapping[str, Any], tensors: Tensors, token_ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """What the head reads, [T, hidden]: the textbook's transformer in float64, with nothing cached, fused or batched."""
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
        q = project(h, prefix + "self_attn.q_proj").reshape(length, heads, dim)
        k = project(h, prefix + "self_attn.k_proj").reshape(length, kv_heads, dim)
        if prefix + "self_attn.q_norm.weight" in weights:
            q, k = norm(q, prefix + "self_attn.q_norm"), norm(k, prefix + "self_attn.k_norm")
        q, k = rotate(q), rotate(k)
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
    return norm(x, "model.norm")
