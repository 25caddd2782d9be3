"""SmolLM3: Llama in which some layers do not rotate queries and keys (Hugging Face 2025)."""

import functools
from dataclasses import replace

import msgspec

from protocol.errors import ModelError
from tpu_worker.models import decoder
from tpu_worker.models.family import Family
from tpu_worker.models.files import ConfigJson, GgufFile
from tpu_worker.models.spec import ModelSpec

_INTERVAL = 4  # every fourth layer is not rotated


class Config(msgspec.Struct):
    """The fields of a config.json that it reads; the defaults are those of transformers."""

    vocab_size: int = 128256
    hidden_size: int = 2048
    intermediate_size: int = 11008
    num_hidden_layers: int = 36
    num_attention_heads: int = 16
    num_key_value_heads: int | None = 4
    head_dim: int | None = None
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: int | None = None
    no_rope_layers: list[int] | None = None  # of each layer 1 where it is rotated, 0 where not
    no_rope_layer_interval: int = _INTERVAL
    layer_types: list[str] | None = None


def read_config(file: ConfigJson) -> ModelSpec:
    """See Family. Without types of layers, those that are not rotated have the window."""
    config = file.read(Config)
    types = decoder.layer_types(file.path, config.layer_types, config.num_hidden_layers, None)
    count = len(types)
    if config.no_rope_layer_interval < 1:
        raise ModelError(f"{file.path}: no_rope_layer_interval is {config.no_rope_layer_interval}")
    rotated = config.no_rope_layers or [int((index + 1) % config.no_rope_layer_interval != 0) for index in range(count)]
    if len(rotated) < count:
        raise ModelError(f"{file.path}: no_rope_layers is of {len(rotated)} layers, num_hidden_layers is {count}")
    window = config.sliding_window if config.use_sliding_window else None
    if config.layer_types is None:
        types = ["full_attention" if turns else "sliding_attention" for turns in rotated]
    layer = replace(
        decoder.layer_from_config(config, functools.partial(file.rope, default_theta=2e6)),
        qkv_bias=config.attention_bias,
        output_bias=config.attention_bias,
        mlp_bias=config.mlp_bias,
    )
    return decoder.spec_from_config(
        file,
        config,
        (
            replace(
                layer,
                rope=layer.rope if rotated[index] else None,
                sliding_window=window if types[index] == "sliding_attention" else None,
            )
            for index in range(count)
        ),
    )


def read_gguf(file: GgufFile) -> ModelSpec:
    """See Family. These files do not say which layers are rotated: it is the interval of the models that there are."""
    return decoder.spec_from_gguf(
        file,
        lambda index, layer: layer if (index + 1) % _INTERVAL else replace(layer, rope=None),
        qkv_bias=file.has("blk.0.attn_q.bias"),
        output_bias=file.has("blk.0.attn_output.bias"),
        mlp_bias=file.has("blk.0.ffn_up.bias"),
    )


FAMILY = Family(
    huggingface=("SmolLM3ForCausalLM",),
    gguf=("smollm3",),
    read_config=read_config,
    read_gguf=read_gguf,
    parameters=decoder.parameters,
    layer_parameters=decoder.layer_parameters,
    gguf_names=decoder.GGUF_NAMES,
    forward=decoder.forward,
    logits=decoder.logits,
    states=decoder.states,
    interleaved=decoder.ROTATED,
)
