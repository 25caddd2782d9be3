"""Llama and Mistral: pre-norm transformers with rotary positions, grouped-query attention and a gated MLP (Touvron et al. 2023)."""

from dataclasses import replace

import msgspec

from protocol.errors import ModelError
from tpu_worker.models import decoder
from tpu_worker.models.family import Family
from tpu_worker.models.files import ConfigJson, GgufFile, check_num_layers
from tpu_worker.models.spec import ModelSpec


class Config(msgspec.Struct):
    """The fields of a config.json that this family reads; the defaults are those of transformers."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None


class MistralConfig(Config):
    """Mistral's defaults where they differ."""

    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 131072
    sliding_window: int | None = 4096


def read_config(file: ConfigJson) -> ModelSpec:
    """See Family."""
    mistral = file.architecture == "MistralForCausalLM"
    config = file.read(MistralConfig if mistral else Config)
    if config.sliding_window is not None and not mistral:
        raise ModelError(f"{file.path}: sliding_window {config.sliding_window}: {file.architecture} has no windows: set it to null")
    layer = replace(
        decoder.layer_from_config(config, file.rope),
        sliding_window=config.sliding_window,
        qkv_bias=config.attention_bias,
        output_bias=config.attention_bias,
        mlp_bias=config.mlp_bias,
    )
    return decoder.spec_from_config(file, config, (layer,) * check_num_layers(file.path, config.num_hidden_layers))


def read_gguf(file: GgufFile) -> ModelSpec:
    """See Family. Biases are there if the first layer has them; a layer that differs is noticed by its tensors."""
    window = file.integer("attention.sliding_window", 0)
    return decoder.spec_from_gguf(
        file,
        sliding_window=window or None,
        qkv_bias=file.has("blk.0.attn_q.bias"),
        output_bias=file.has("blk.0.attn_output.bias"),
        mlp_bias=file.has("blk.0.ffn_up.bias"),
    )


FAMILY = Family(
    huggingface=("LlamaForCausalLM", "MistralForCausalLM"),
    gguf=("llama",),
    read_config=read_config,
    read_gguf=read_gguf,
    parameters=decoder.parameters,
    layer_parameters=decoder.layer_parameters,
    gguf_names=decoder.GGUF_NAMES,
    forward=decoder.forward,
    logits=decoder.logits,
    states=decoder.states,
    interleaved=("self_attn.q_proj", "self_attn.k_proj"),
)
