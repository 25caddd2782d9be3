"""Qwen 3: Llama with norms on the queries and keys of each head, which may be wider than hidden_size / heads (Qwen team 2025)."""

from typing import Literal

import msgspec

from tpu_worker.models import decoder
from tpu_worker.models.family import Family
from tpu_worker.models.files import ConfigJson, GgufFile
from tpu_worker.models.spec import LayerSpec, ModelSpec


class Config(msgspec.Struct):
    """The fields of a config.json that this family reads; the defaults are those of transformers."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = 32
    head_dim: int | None = 128
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    layer_types: list[Literal["full_attention", "sliding_attention"]] | None = None


def read_config(file: ConfigJson) -> ModelSpec:
    """See Family."""
    config = file.read(Config)
    window = config.sliding_window if config.use_sliding_window else None
    head_dim = config.head_dim or config.hidden_size // max(1, config.num_attention_heads)
    layer_types = decoder.layer_types(
        file.path, config.layer_types, config.num_hidden_layers, None if window is None else config.max_window_layers
    )
    return decoder.spec_from_config(
        file,
        config,
        (
            LayerSpec(
                num_heads=config.num_attention_heads,
                num_kv_heads=config.num_key_value_heads or config.num_attention_heads,
                head_dim=head_dim,
                intermediate_size=config.intermediate_size,
                rope=file.rope(head_dim, layer_type),
                sliding_window=window if layer_type == "sliding_attention" else None,
                qkv_bias=config.attention_bias,
                output_bias=config.attention_bias,
                qk_norm=True,
            )
            for layer_type in layer_types
        ),
    )


def read_gguf(file: GgufFile) -> ModelSpec:
    """See Family."""
    return decoder.spec_from_gguf(file, qk_norm=True)


FAMILY = Family(
    huggingface=("Qwen3ForCausalLM",),
    gguf=("qwen3",),
    read_config=read_config,
    read_gguf=read_gguf,
    parameters=decoder.parameters,
    layer_parameters=decoder.layer_parameters,
    gguf_names=decoder.GGUF_NAMES,
    forward=decoder.forward,
)
