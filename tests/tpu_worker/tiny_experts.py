"""Tiny mixtures of experts with random weights, whose routers are decisive.

Where two experts suit a token nearly as well, the smallest rounding chooses the other one, and nothing can be said of what comes of
it. So the first features of a token's embedding are a shuffle of evenly spaced numbers, one for each expert; no layer changes them,
and each router reads them alone, in an order of its own.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import quantize

from tests.tpu_worker.tiny_models import CONFIG, Tensors

MIXTRAL: dict[str, Any] = {
    **CONFIG,
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_hidden_layers": 2,
    "intermediate_size": 40,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "sliding_window": 21,
}
QWEN3_MOE: dict[str, Any] = {
    **CONFIG,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_hidden_layers": 3,
    "moe_intermediate_size": 24,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "norm_topk_prob": True,
    "mlp_only_layers": [1],
    "num_key_value_heads": 1,
}
GPT_OSS: dict[str, Any] = {
    **{key: value for key, value in CONFIG.items() if key != "rope_theta"},
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "num_hidden_layers": 3,
    "intermediate_size": 32,
    "num_local_experts": 6,
    "num_experts_per_tok": 3,
    "sliding_window": 21,
    "attention_bias": True,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 500.0,
        "factor": 4.0,
        "beta_fast": 8.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 64,
    },
}
# What transformers computes of each is in tests/data/families.
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": MIXTRAL,
    "qwen3_moe": QWEN3_MOE,
    "qwen3_moe_unnormalised": {**QWEN3_MOE, "norm_topk_prob": False, "decoder_sparse_step": 2, "mlp_only_layers": []},
    "gpt_oss": GPT_OSS,
}


def num_experts(config: Mapping[str, Any]) -> int:
    count: int = config["num_experts"] if "num_experts" in config else config["num_local_experts"]
    return count


def is_sparse(config: Mapping[str, Any], layer: int) -> bool:
    return layer not in config.get("mlp_only_layers", []) and (layer + 1) % config.get("decoder_sparse_step", 1) == 0


def make_tensors(config: Mapping[str, Any], seed: int = 0) -> Tensors:
    """bfloat16 tensors under the names of Hugging Face checkpoints, as `tiny_models.make_tensors` has them."""
    rng = np.random.default_rng(seed)
    count, hidden = num_experts(config), config["hidden_size"]
    tensors: dict[str, npt.NDArray[np.float64]] = {}
    for name, shape in _shapes(config):
        fan_in = shape[1] if "experts.gate_up_proj" in name or "experts.down_proj" in name else shape[-1]
        matrix = len(shape) > 1 and not name.endswith("_bias")
        values = rng.normal(1.0 if "norm" in name else 0.0, 1.5 / np.sqrt(fan_in) if matrix else 0.3, shape)
        if name == "model.embed_tokens.weight":
            levels = (np.arange(count) - (count - 1) / 2) * (2.5 / count)
            values = rng.normal(0.0, 1.0, shape)
            values[:, :count] = rng.permuted(np.tile(levels, (shape[0], 1)), axis=1)
        elif name.endswith((".gate.weight", ".router.weight")):
            values = np.zeros(shape)
            values[np.arange(count), rng.permutation(count)] = 3.0
        elif name.endswith(".router.bias"):
            values = rng.uniform(-0.2, 0.2, shape)
        elif name.endswith(("o_proj.weight", "down_proj.weight", "w2.weight")):
            values[:count] = 0.0
        elif name.endswith(("experts.down_proj", "down_proj_bias", "o_proj.bias")):
            values[..., :count] = 0.0
        elif "norm" in name and shape == (hidden,):
            values[:count] = 1.0
        if name == "model.norm.weight" and config["tie_word_embeddings"]:
            values *= 1.5 / np.sqrt(hidden)  # logits of the size that a head of its own gives
        tensors[name] = values
    return {name: values.astype(ml_dtypes.bfloat16) for name, values in tensors.items()}


def _shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, dim, architecture = config["hidden_size"], config["head_dim"], config["architectures"][0]
    q_size, kv_size = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    yield "model.norm.weight", (hidden,)
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, rows, columns in (("q", q_size, hidden), ("k", kv_size, hidden), ("v", kv_size, hidden), ("o", hidden, q_size)):
            yield f"{prefix}self_attn.{name}_proj.weight", (rows, columns)
            if config.get("attention_bias"):
                yield f"{prefix}self_attn.{name}_proj.bias", (rows,)
        if architecture == "Qwen3MoeForCausalLM":
            yield f"{prefix}self_attn.q_norm.weight", (dim,)
            yield f"{prefix}self_attn.k_norm.weight", (dim,)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}{name}.weight", (hidden,)
        yield from _mlp_shapes(config, layer, prefix)


def _mlp_shapes(config: Mapping[str, Any], layer: int, prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, mlp, count = config["hidden_size"], config["intermediate_size"], num_experts(config)
    if config["architectures"] == ["GptOssForCausalLM"]:
        yield f"{prefix}self_attn.sinks", (config["num_attention_heads"],)
        yield f"{prefix}mlp.router.weight", (count, hidden)
        yield f"{prefix}mlp.router.bias", (count,)
        yield f"{prefix}mlp.experts.gate_up_proj", (count, hidden, 2 * mlp)
        yield f"{prefix}mlp.experts.gate_up_proj_bias", (count, 2 * mlp)
        yield f"{prefix}mlp.experts.down_proj", (count, mlp, hidden)
        yield f"{prefix}mlp.experts.down_proj_bias", (count, hidden)
        return
    module, names = "mlp", ("gate_proj", "up_proj", "down_proj")
    if config["architectures"] == ["MixtralForCausalLM"]:
        module, names = "block_sparse_moe", ("w1", "w3", "w2")
    elif is_sparse(config, layer):
        mlp = config["moe_intermediate_size"]
    experts = [f"{prefix}{module}.experts.{expert}." for expert in range(count)]
    if is_sparse(config, layer):
        yield f"{prefix}{module}.gate.weight", (count, hidden)
    for one in experts if is_sparse(config, layer) else [f"{prefix}{module}."]:
        for name, shape in zip(names, ((mlp, hidden), (mlp, hidden), (hidden, mlp)), strict=True):
            yield f"{one}{name}.weight", shape


def write_gguf(
    path: Path,
    config: Mapping[str, Any],
    tensors: Tensors,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    expert_kind: GGMLQuantizationType | None = None,
    *,
    stacked: bool = True,
) -> Path:
    """The same as llama.cpp's converter writes it, in tensors of this type, those of experts perhaps of another.

    stacked: those of a layer's experts as one; else each by itself, as early files had them.
    """
    arch = {"MixtralForCausalLM": "llama", "Qwen3MoeForCausalLM": "qwen3moe", "GptOssForCausalLM": "gpt-oss"}[
        config["architectures"][0]
    ]
    writer = GGUFWriter(path, arch)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(num_experts(config))
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_rope_freq_base((config.get("rope_parameters") or config)["rope_theta"])
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    if arch == "qwen3moe":
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
        writer.add_expert_weights_norm(config["norm_topk_prob"])
    if arch == "gpt-oss":
        scaling = config["rope_parameters"]
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(scaling["factor"])
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(scaling["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(scaling["beta_slow"])
    stacks: dict[str, dict[int, npt.NDArray[np.float32]]] = {}
    for name, values in _gguf_tensors(config, tensors):
        if ".experts." in name and name.partition(".experts.")[2][0].isdigit():
            before, _, rest = name.partition(".experts.")
            number, _, rest = rest.partition(".")
            whole = f"{before}.experts.{rest}"
            if stacked:
                stacks.setdefault(whole, {})[int(number)] = values
            else:
                _add(writer, _gguf_name(arch, whole).replace("_exps.", f".{number}."), values, expert_kind or kind)
        else:
            _add(writer, _gguf_name(arch, name), values, expert_kind or kind if "_exps." in _gguf_name(arch, name) else kind)
    for name, parts in stacks.items():
        _add(writer, _gguf_name(arch, name), np.stack([parts[number] for number in sorted(parts)]), expert_kind or kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_tensors(config: Mapping[str, Any], tensors: Tensors) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Under Hugging Face's names, each expert by itself, rows in the order of the file."""
    for name, tensor in tensors.items():
        values = tensor.astype(np.float32)
        for projection, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if projection in name and config["architectures"] == ["MixtralForCausalLM"]:  # its rotary pairs lie side by side
                values = values.reshape(config[heads], 2, config["head_dim"] // 2, -1).swapaxes(1, 2).reshape(values.shape)
        if name.endswith(("gate_up_proj", "gate_up_proj_bias")):
            bias = name.endswith("_bias")
            for first, half in ((0, "gate_proj"), (1, "up_proj")):
                part = values[..., first::2]
                renamed = name.removesuffix("gate_up_proj_bias" if bias else "gate_up_proj") + half
                yield (f"{renamed}.bias", part) if bias else (f"{renamed}.weight", part.swapaxes(1, 2))
        elif name.endswith("experts.down_proj_bias"):
            yield name.removesuffix("_bias") + ".bias", values
        elif name.endswith("experts.down_proj"):
            yield name + ".weight", values.swapaxes(1, 2)
        else:
            yield name, values


_GGUF_NAMES = {
    "embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "block_sparse_moe.experts.w1": "ffn_gate_exps",
    "block_sparse_moe.experts.w3": "ffn_up_exps",
    "block_sparse_moe.experts.w2": "ffn_down_exps",
    "mlp.gate": "ffn_gate_inp",
    "mlp.router": "ffn_gate_inp",
    "self_attn.sinks": "attn_sinks",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _gguf_name(arch: str, name: str) -> str:
    if arch == "gpt-oss" and "post_attention_layernorm" in name:
        return f"blk.{name.split('.')[2]}.post_attention_norm.weight"
    if name.endswith(".sinks"):
        name += ".weight"
    module, kind = name.rsplit(".", 1)
    if module.startswith("model.layers."):
        _, _, layer, module = module.split(".", 3)
        return f"blk.{layer}.{_GGUF_NAMES[module]}.{kind}"
    return f"{_GGUF_NAMES[module.removeprefix('model.') if module != 'model.norm' else module]}.{kind}"


def _add(writer: GGUFWriter, name: str, values: npt.NDArray[np.float32], kind: GGMLQuantizationType) -> None:
    whole_blocks = values.shape[-1] % GGML_QUANT_SIZES[kind][0] == 0 and not name.endswith(".bias")
    if (
        kind != GGMLQuantizationType.F32
        and values.ndim > 1
        and whole_blocks
        and "ffn_gate_inp" not in name
        and not name.endswith(".bias")
    ):
        writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, np.ascontiguousarray(values))
