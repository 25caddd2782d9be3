"""Tiny models of the dense families, with random weights, as Hugging Face directories and as llama.cpp's converter writes them.

The names and shapes of their tensors are transformers' own: `scripts/make_family_references.py` writes them beside the references.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from gguf import MODEL_ARCH_NAMES, GGUFWriter, RopeScalingType, get_tensor_name_map

from tests.tpu_worker.tiny_models import CONFIG, Tensors

_SMALL = {**CONFIG, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
_GEMMA = {
    **_SMALL,
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 21,
    "query_pre_attn_scalar": 32,
    "tie_word_embeddings": True,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24, "rope_theta": 500.0}
_LONG = [1.0 + 0.5 * i for i in range(12)]
_SHORT = [1.0 + 0.1 * i for i in range(12)]

# What could be overlooked is set so that it matters within 96 tokens.
FAMILIES: dict[str, dict[str, Any]] = {
    "gemma2": {
        **_GEMMA,
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 4.0,
    },
    "gemma3": {
        **_GEMMA,
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "num_hidden_layers": 7,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "rope_theta": 900.0,
        "rope_local_base_freq": 50.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "phi3": {**_SMALL, "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "head_dim": 16, "sliding_window": 21},
    "phi4_mini": {
        **_SMALL,
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "hidden_size": 128,
        "head_dim": 32,
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 32,
        "rope_scaling": {"type": "longrope", "short_factor": _SHORT, "long_factor": _LONG},
        "tie_word_embeddings": True,
    },
    "smollm3": {**_SMALL, "architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "head_dim": 16, "num_hidden_layers": 5},
    "olmo2": {**_SMALL, "architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "head_dim": 16, "num_key_value_heads": 4},
    "granite": {
        **_SMALL,
        "architectures": ["GraniteForCausalLM"],
        "model_type": "granite",
        "head_dim": 16,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.1,
        "residual_multiplier": 0.4,
        "logits_scaling": 2.5,
    },
    "ministral": {
        **_SMALL,
        "architectures": ["MinistralForCausalLM"],
        "model_type": "ministral",
        "sliding_window": 21,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "ministral3": {
        **{key: value for key, value in _SMALL.items() if key != "rope_theta"},
        "architectures": ["Ministral3ForCausalLM"],
        "model_type": "ministral3",
        "rope_parameters": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.4},
    },
    "llama_yarn": {
        **_SMALL,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24},
    },
    "qwen3_yarn": {
        **_SMALL,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "rope_scaling": {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 32, "beta_fast": 8.0},
    },
}
NOT_IN_GGUF = ("ministral",)  # llama.cpp has no architecture with windows in some layers of it

_ARCHITECTURES = {
    "GemmaForCausalLM": "gemma",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "Phi3ForCausalLM": "phi3",
    "SmolLM3ForCausalLM": "smollm3",
    "Olmo2ForCausalLM": "olmo2",
    "GraniteForCausalLM": "granite",
    "Ministral3ForCausalLM": "mistral3",
    "LlamaForCausalLM": "llama",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen2ForCausalLM": "qwen2",
}
_INTERLEAVED = ("llama", "smollm3", "granite", "mistral3")


def make_tensors(config: Mapping[str, Any], shapes: Mapping[str, Any], seed: int = 0) -> Tensors:
    """Random bfloat16 tensors of these shapes."""
    rng = np.random.default_rng(seed)
    middle = 0.0 if config["architectures"][0].startswith("Gemma") else 1.0  # of norms: Gemma's are stored less 1
    tensors: Tensors = {}
    for name, shape in shapes.items():
        spread = 1.0 / np.sqrt(shape[-1]) if len(shape) > 1 else 0.3
        tensors[name] = rng.normal(middle if "norm" in name else 0.0, spread, shape).astype(ml_dtypes.bfloat16)
    return tensors


def write_gguf(path: Path, config: Mapping[str, Any], tensors: Tensors) -> Path:
    """As llama.cpp's converter writes it, in float32."""
    arch = _ARCHITECTURES[config["architectures"][0]]
    names = get_tensor_name_map({value: key for key, value in MODEL_ARCH_NAMES.items()}[arch], config["num_hidden_layers"])
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer = GGUFWriter(path, arch)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if head_dim * config["num_attention_heads"] != config["hidden_size"]:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    _add_rotation(writer, config, head_dim)
    if arch == "phi3":
        writer.add_sliding_window(config.get("sliding_window") or 0)
    elif config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    for key, add in (
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
        ("attention_multiplier", writer.add_attention_scale),
        ("embedding_multiplier", writer.add_embedding_scale),
        ("residual_multiplier", writer.add_residual_scale),
        ("logits_scaling", writer.add_logit_scale),
    ):
        if config.get(key) is not None:
            add(config[key])
    for name, tensor in tensors.items():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        values = tensor.astype(np.float32)
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        for projection, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if projection in name and arch in _INTERLEAVED:
                values = values.reshape(config[heads], 2, head_dim // 2, -1).swapaxes(1, 2).reshape(values.shape)
        theirs = names.get_name(name, (".weight", ".bias"))
        assert theirs is not None, name
        writer.add_tensor(theirs, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_rotation(writer: GGUFWriter, config: Mapping[str, Any], head_dim: int) -> None:
    said = {**(config.get("rope_parameters") or {}), **(config.get("rope_scaling") or {})}
    writer.add_rope_freq_base(said["rope_theta"] if "rope_theta" in said else config["rope_theta"])
    if "rope_local_base_freq" in config:
        writer.add_rope_freq_base_swa(config["rope_local_base_freq"])
    writer.add_rope_dimension_count(int(head_dim * config.get("partial_rotary_factor", 1.0)))
    kind = said.get("rope_type", said.get("type"))
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(said["factor"])
    elif kind == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(said["factor"])
        writer.add_rope_scaling_orig_ctx_len(said["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(said.get("beta_fast", 32.0))
        writer.add_rope_scaling_yarn_beta_slow(said.get("beta_slow", 1.0))
        if "mscale_all_dim" in said:
            writer.add_rope_scaling_yarn_log_mul(said["mscale_all_dim"])
        if "llama_4_scaling_beta" in said:
            writer.add_attn_temperature_scale(said["llama_4_scaling_beta"])
    elif kind == "longrope":
        original: int = config["original_max_position_embeddings"]
        factor = config["max_position_embeddings"] / original
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(factor) / np.log(original))))
        for name in ("long", "short"):
            divisors: npt.NDArray[np.float32] = np.array(said[f"{name}_factor"], np.float32)
            writer.add_tensor(f"rope_factors_{name}.weight", divisors)
