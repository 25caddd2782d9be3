"""Granite 3: Llama with multipliers on embeddings, scores, residuals and logits (IBM 2024)."""

from dataclasses import replace

from protocol.errors import ModelError
from tpu_worker.models import decoder, llama
from tpu_worker.models.family import Family
from tpu_worker.models.files import ConfigJson, GgufFile, check_num_layers
from tpu_worker.models.spec import ModelSpec


class Config(llama.Config):
    """What it reads beyond Llama's."""

    embedding_multiplier: float = 1.0
    logits_scaling: float = 1.0
    residual_multiplier: float = 1.0
    attention_multiplier: float = 1.0


def read_config(file: ConfigJson) -> ModelSpec:
    """See Family."""
    config = file.read(Config)
    layer = replace(
        decoder.layer_from_config(config, file.rope),
        qkv_bias=config.attention_bias,
        output_bias=config.attention_bias,
        mlp_bias=config.mlp_bias,
        scale=config.attention_multiplier,
        residual_scale=config.residual_multiplier,
    )
    return decoder.spec_from_config(
        file,
        config,
        (layer,) * check_num_layers(file.path, config.num_hidden_layers),
        embedding_scale=config.embedding_multiplier,
        logit_scale=1 / _not_zero(file.path, "logits_scaling", config.logits_scaling),
    )


def read_gguf(file: GgufFile) -> ModelSpec:
    """See Family. What a file does not say changes nothing."""
    scale = file.number("attention.scale", 0.0)
    return decoder.spec_from_gguf(
        file,
        scales={
            "embedding_scale": file.number("embedding_scale", 1.0),
            "logit_scale": 1 / _not_zero(file.path, "granite.logit_scale", file.number("logit_scale", 1.0)),
        },
        qkv_bias=file.has("blk.0.attn_q.bias"),
        output_bias=file.has("blk.0.attn_output.bias"),
        mlp_bias=file.has("blk.0.ffn_up.bias"),
        scale=scale or None,
        residual_scale=file.number("residual_scale", 1.0),
    )


def _not_zero(path: object, name: str, value: float) -> float:
    if value == 0:
        raise ModelError(f"{path}: {name} is 0, and logits are divided by it")
    return value


FAMILY = Family(
    huggingface=("GraniteForCausalLM",),
    gguf=("granite",),
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
