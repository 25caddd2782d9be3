"""Ministral, and the text of Mistral 3: Mistral with windows in some layers, or with queries that grow with their position.

Ministral 3 scales queries as Llama 4 does, beyond the context that YaRN stretches (Mistral AI 2024, 2025).
"""

from dataclasses import replace
from typing import Any

import msgspec

from protocol.errors import ModelError
from tpu_worker.models import decoder
from tpu_worker.models.family import Family
from tpu_worker.models.files import ConfigJson, GgufFile, check_num_layers
from tpu_worker.models.spec import ModelSpec


class Config(msgspec.Struct):
    """The fields of a config.json that all of them read; the defaults are those of transformers."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    head_dim: int | None = None
    max_position_embeddings: int = 4096 * 32
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    sliding_window: int | None = 4096
    layer_types: list[str] | None = None


class Ministral3Config(Config):
    """Ministral 3's defaults where they differ."""

    vocab_size: int = 131072
    num_hidden_layers: int = 34
    head_dim: int | None = 128
    max_position_embeddings: int = 262144
    rms_norm_eps: float = 1e-5
    sliding_window: int | None = None


def read_config(file: ConfigJson) -> ModelSpec:
    """See Family. Types of layers count for Ministral only, as in transformers."""
    is_third = file.architecture == "Ministral3ForCausalLM" or file.fields.get("model_type") == "ministral3"
    config = file.read(Ministral3Config if is_third else Config)
    named = config.layer_types if file.architecture == "MinistralForCausalLM" else None
    types = decoder.layer_types(file.path, named, config.num_hidden_layers, 0)
    layer = replace(
        decoder.layer_from_config(config, file.rope),
        position_scale=_position_scale(file) if is_third else None,
    )
    windows = (config.sliding_window if kind == "sliding_attention" else None for kind in types)
    return decoder.spec_from_config(file, config, (replace(layer, sliding_window=window) for window in windows))


def _position_scale(file: ConfigJson) -> tuple[float, int] | None:
    """What a Ministral 3 says of its queries, beside its rotation."""
    said: dict[str, Any] = {**(file.fields.get("rope_scaling") or {}), **(file.fields.get("rope_parameters") or {})}
    beta, length = said.get("llama_4_scaling_beta"), said.get("original_max_position_embeddings")
    if beta is None:
        raise ModelError(f"{file.path}: rope_parameters lacks llama_4_scaling_beta")
    if isinstance(beta, bool) or not isinstance(beta, int | float):
        raise ModelError(f"{file.path}: llama_4_scaling_beta is {beta!r}, no number")
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise ModelError(f"{file.path}: original_max_position_embeddings is {length!r}, but llama_4_scaling_beta needs it")
    return (float(beta), length) if beta else None


def read_gguf(file: GgufFile) -> ModelSpec:
    """See Family."""
    check_num_layers(file.path, file.integer("block_count"))
    beta = file.number("attention.temperature_scale", 0.0)
    return decoder.spec_from_gguf(
        file,
        sliding_window=file.integer("attention.sliding_window", 0) or None,
        position_scale=(beta, file.integer("rope.scaling.original_context_length")) if beta else None,
    )


FAMILY = Family(
    huggingface=("MinistralForCausalLM", "Ministral3ForCausalLM", "Mistral3ForConditionalGeneration"),
    gguf=("mistral3",),
    read_config=read_config,
    read_gguf=read_gguf,
    parameters=decoder.parameters,
    layer_parameters=decoder.layer_parameters,
    gguf_names=decoder.GGUF_NAMES,
    forward=decoder.forward,
    logits=decoder.logits,
    states=decoder.states,
    interleaved=decoder.ROTATED,
    prefixes=decoder.TEXT_PREFIXES,
    left_out=decoder.VISION_PREFIXES,
)
