"""Phi-3 and Phi-4-mini: Llama whose checkpoints fuse projections, with part of each head rotated, over long contexts by LongRoPE.

Which of the two sets of divisors is used follows from --max-model-len: the long one where that is beyond the original context.
"""

from dataclasses import replace

import msgspec

from tpu_worker.models import decoder
from tpu_worker.models.family import Family, Parameters
from tpu_worker.models.files import ConfigJson, GgufFile, check_num_layers
from tpu_worker.models.spec import ModelSpec, ParameterSpec, Within

_SEPARATE = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
_GGUF_NAMES = {
    **{name: theirs for name, theirs in decoder.GGUF_NAMES.items() if name not in _SEPARATE},
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_up_proj": "ffn_up",
}


class Config(msgspec.Struct):
    """The fields of a config.json that it reads; the defaults are those of transformers."""

    vocab_size: int = 32064
    hidden_size: int = 3072
    intermediate_size: int = 8192
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    sliding_window: int | None = None


def read_config(file: ConfigJson) -> ModelSpec:
    """See Family."""
    config = file.read(Config)
    layer = replace(
        decoder.layer_from_config(config, file.rope),
        sliding_window=config.sliding_window,
    )
    return decoder.spec_from_config(file, config, (layer,) * check_num_layers(file.path, config.num_hidden_layers))


def read_gguf(file: GgufFile) -> ModelSpec:
    """See Family."""
    return decoder.spec_from_gguf(file, sliding_window=file.integer("attention.sliding_window", 0) or None)


def layer_parameters(spec: ModelSpec, index: int) -> Parameters:
    """See Family: those of other decoders, of which each lies within a fused one."""
    found, prefix = decoder.layer_parameters(spec, index), f"model.layers.{index}."
    fused = {"qkv": f"{prefix}self_attn.qkv_proj.weight", "gate_up": f"{prefix}mlp.gate_up_proj.weight"}
    return {name: _within(fused[name], one) if name in fused else one for name, one in found.items()}


def _within(name: str, parameter: ParameterSpec) -> ParameterSpec:
    parts, start = [], 0
    for part in parameter.parts:
        parts.append(replace(part, within=(Within(name, parameter.shape, (range(start, start + part.shape[0]),)),)))
        start += part.shape[0]
    return replace(parameter, parts=tuple(parts))


FAMILY = Family(
    huggingface=("Phi3ForCausalLM",),
    gguf=("phi3",),
    read_config=read_config,
    read_gguf=read_gguf,
    parameters=decoder.parameters,
    layer_parameters=layer_parameters,
    gguf_names=_GGUF_NAMES,
    forward=decoder.forward,
    logits=decoder.logits,
    states=decoder.states,
)
