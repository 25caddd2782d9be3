"""Gemma 2: layers with and without windows in turn, capped scores and logits, norms before and after (Gemma team 2024).

Embeddings are scaled, the MLP's gate is a GELU, and checkpoints hold the weights of norms less 1; GGUF files hold them whole.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from protocol.errors import ModelError
from tpu_worker.models import decoder
from tpu_worker.models.family import Family
from tpu_worker.models.files import ConfigJson, GgufFile
from tpu_worker.models.rope import Rope
from tpu_worker.models.spec import LayerSpec, ModelSpec

NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
GGUF_NAMES = {
    **decoder.GGUF_NAMES,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_LAYERS_OF_27B = 46  # whose scores are scaled by hidden_size / heads, which GGUF files do not say


class Config(msgspec.Struct):
    """The fields of a config.json that it reads; the defaults are those of transformers."""

    vocab_size: int = 256000
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 256
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    query_pre_attn_scalar: float = 256
    sliding_window: int | None = 4096
    layer_types: list[str] | None = None
    final_logit_softcapping: float | None = 30.0
    attn_logit_softcapping: float | None = 50.0
    hidden_activation: str | None = "gelu_pytorch_tanh"
    hidden_act: str | None = None  # written beside it, and read by nobody


def spec_of(file: ConfigJson, config: Config, pattern: int, ropes: dict[str, Rope], **layers: object) -> ModelSpec:
    """Where the config does not name the layers' types, every pattern-th has no window. ropes: by type of layer."""
    if config.hidden_activation != "gelu_pytorch_tanh":
        raise ModelError(f"{file.path}: hidden_activation {config.hidden_activation!r} is not supported, only 'gelu_pytorch_tanh'")
    if not config.query_pre_attn_scalar > 0:
        raise ModelError(f"{file.path}: query_pre_attn_scalar is {config.query_pre_attn_scalar}, but must be above 0")
    count = config.num_hidden_layers
    named = config.layer_types or types(count, pattern)
    layer = LayerSpec(
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        intermediate_size=config.intermediate_size,
        rope=None,
        qkv_bias=config.attention_bias,
        output_bias=config.attention_bias,
        scale=config.query_pre_attn_scalar**-0.5,
        activation="gelu_tanh",
        norm_after=True,
        **layers,  # type: ignore[arg-type]
    )
    return decoder.spec_from_config(
        file,
        config,
        (
            replace(layer, rope=ropes[kind], sliding_window=config.sliding_window if kind == "sliding_attention" else None)
            for kind in decoder.layer_types(file.path, named, count, None)
        ),
        embedding_scale=math.sqrt(config.hidden_size),
        logit_soft_cap=config.final_logit_softcapping,
        norm_offset=1.0,
    )


def types(num_layers: int, pattern: int) -> Sequence[str]:
    """Of each layer: every pattern-th has no window."""
    return [
        "full_attention" if (index + 1) % pattern == 0 else "sliding_attention" for index in range(max(0, min(num_layers, 4096)))
    ]


def read_config(file: ConfigJson) -> ModelSpec:
    """See Family."""
    config = file.read(Config)
    rope = file.rope(config.head_dim)
    return spec_of(file, config, 2, dict.fromkeys(decoder.LAYER_TYPES, rope), soft_cap=config.attn_logit_softcapping)


def spec_of_gguf(file: GgufFile, pattern: int, layers_of_27b: int, local: Rope | None = None, **layers: object) -> ModelSpec:
    """local: the rotation in layers with windows, if it is another."""
    heads, hidden = file.integer("attention.head_count"), file.integer("embedding_length")
    head_dim = file.integer("attention.key_length", hidden // max(1, heads))
    widest = hidden / max(1, heads) if file.integer("block_count") == layers_of_27b else head_dim
    window = file.integer("attention.sliding_window", 4096)
    cap = file.number("final_logit_softcapping", 0.0)

    def vary(index: int, layer: LayerSpec) -> LayerSpec:
        if (index + 1) % pattern == 0:
            return layer
        return replace(layer, sliding_window=window, rope=local or layer.rope)

    return decoder.spec_from_gguf(
        file,
        vary,
        {"embedding_scale": math.sqrt(hidden), "logit_soft_cap": cap or None},
        scale=file.number("attention.scale", widest**-0.5),
        activation="gelu_tanh",
        norm_after=True,
        **layers,
    )


def read_gguf(file: GgufFile) -> ModelSpec:
    """See Family."""
    return spec_of_gguf(file, 2, _LAYERS_OF_27B, soft_cap=file.number("attn_logit_softcapping", 50.0))


FAMILY = Family(
    huggingface=("Gemma2ForCausalLM",),
    gguf=("gemma2",),
    read_config=read_config,
    read_gguf=read_gguf,
    parameters=decoder.parameters,
    layer_parameters=functools.partial(decoder.layer_parameters, norms=NORMS),
    gguf_names=GGUF_NAMES,
    forward=decoder.forward,
    logits=decoder.logits,
    states=decoder.states,
)
