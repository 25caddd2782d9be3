"""gpt-oss: experts with biases and a clamped gate, windows in every other layer, a sink for each head (OpenAI 2025)."""

import functools
from dataclasses import replace
from typing import Literal

import msgspec

from protocol.errors import ModelError
from tpu_worker.models import decoder, experts
from tpu_worker.models.family import Family
from tpu_worker.models.files import ConfigJson, GgufFile, check_num_layers
from tpu_worker.models.layers import SWIGLU_LIMIT, SWIGLU_SLOPE
from tpu_worker.models.rope import Rope, RopeScaling, yarn_amplitude
from tpu_worker.models.spec import ExpertsSpec, LayerSpec, ModelSpec


class Config(msgspec.Struct):
    """The fields of a config.json that this family reads; the defaults are those of transformers."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = 8
    head_dim: int | None = 64
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    attention_bias: bool = True
    sliding_window: int | None = 128
    layer_types: list[Literal["full_attention", "sliding_attention"]] | None = None
    num_local_experts: int = 128
    num_experts_per_tok: int = 4
    swiglu_limit: float = SWIGLU_LIMIT
    swiglu_alpha: float = SWIGLU_SLOPE


def read_config(file: ConfigJson) -> ModelSpec:
    """See Family."""
    config = file.read(Config)
    for name, value, known in (
        ("swiglu_limit", config.swiglu_limit, SWIGLU_LIMIT),
        ("swiglu_alpha", config.swiglu_alpha, SWIGLU_SLOPE),
    ):
        if value != known:
            raise ModelError(f"{file.path}: {name} {value} is not supported, only {known}")
    num_layers = check_num_layers(file.path, config.num_hidden_layers)
    named = config.layer_types or [_type_of(index) for index in range(num_layers)]
    layer = replace(
        decoder.layer_from_config(config, functools.partial(_rope, file)),
        qkv_bias=config.attention_bias,
        output_bias=config.attention_bias,
        sinks=True,
        experts=_experts(config.num_local_experts, config.num_experts_per_tok),
    )
    return decoder.spec_from_config(
        file,
        config,
        (
            replace(layer, sliding_window=config.sliding_window if layer_type == "sliding_attention" else None)
            for layer_type in decoder.layer_types(file.path, named, num_layers, None)
        ),
    )


def _rope(file: ConfigJson, head_dim: int) -> Rope:
    """As the file says; one that says nothing has that of the published models."""
    if file.fields.get("rope_parameters") is None and file.fields.get("rope_scaling") is None:
        theta = file.fields.get("rope_theta") or 150000.0
        return replace(file.rope(head_dim), theta=theta, scaling=_yarn(32.0, 4096))
    return file.rope(head_dim)


def _yarn(factor: float, original_context: int) -> RopeScaling:
    return RopeScaling("yarn", factor, original_context=original_context, truncate=False, amplitude=yarn_amplitude(factor))


def _type_of(index: int) -> Literal["full_attention", "sliding_attention"]:
    return "full_attention" if index % 2 else "sliding_attention"


def _experts(count: int, chosen: int) -> ExpertsSpec:
    return ExpertsSpec(count, chosen, renormalised=True, activation="clamped_swiglu", router_bias=True, bias=True)


def read_gguf(file: GgufFile) -> ModelSpec:
    """See Family. Bounds of its rotary scaling are not rounded, as in transformers."""
    spec = decoder.spec_from_gguf(file, qkv_bias=True, output_bias=True)
    window = file.integer("attention.sliding_window", 0) or None

    def complete(index: int, layer: LayerSpec) -> LayerSpec:
        if layer.experts is None:
            raise ModelError(
                f"{file.path}: tensor blk.{index}.ffn_gate_inp.weight is missing: layers without experts are not supported"
            )
        return replace(
            layer,
            sliding_window=window if _type_of(index) == "sliding_attention" else None,
            rope=_unrounded(layer.rope),
            sinks=True,
            experts=_experts(layer.experts.count, layer.experts.chosen),
        )

    return replace(spec, layers=tuple(complete(index, layer) for index, layer in enumerate(spec.layers)))


def _unrounded(rope: Rope | None) -> Rope | None:
    return rope if rope is None or rope.scaling is None else replace(rope, scaling=replace(rope.scaling, truncate=False))


FAMILY = Family(
    huggingface=("GptOssForCausalLM",),
    gguf=("gpt-oss",),
    read_config=read_config,
    read_gguf=read_gguf,
    parameters=decoder.parameters,
    layer_parameters=functools.partial(decoder.layer_parameters, names=experts.Names("mlp.router", interleaved=True)),
    gguf_names={**decoder.GGUF_NAMES, "mlp.router": "ffn_gate_inp", "post_attention_layernorm": "post_attention_norm"},
    forward=decoder.forward,
    logits=decoder.logits,
    states=decoder.states,
)
