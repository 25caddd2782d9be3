"""OLMo 2: norms behind attention and MLP instead of before them, and over all queries and all keys (OLMo team 2024)."""

import functools
from dataclasses import replace

import msgspec

from tpu_worker.models import decoder
from tpu_worker.models.family import Family
from tpu_worker.models.files import ConfigJson, GgufFile, check_num_layers
from tpu_worker.models.spec import ModelSpec


class Config(msgspec.Struct):
    """The fields of a config.json that it reads; the defaults are those of transformers."""

    vocab_size: int = 50304
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    attention_bias: bool = False


def read_config(file: ConfigJson) -> ModelSpec:
    """See Family."""
    config = file.read(Config)
    layer = replace(
        decoder.layer_from_config(config, file.rope),
        qkv_bias=config.attention_bias,
        output_bias=config.attention_bias,
        qk_norm="projection",
        norm_before=False,
        norm_after=True,
    )
    return decoder.spec_from_config(file, config, (layer,) * check_num_layers(file.path, config.num_hidden_layers))


def read_gguf(file: GgufFile) -> ModelSpec:
    """See Family."""
    return decoder.spec_from_gguf(
        file,
        qkv_bias=file.has("blk.0.attn_q.bias"),
        output_bias=file.has("blk.0.attn_output.bias"),
        qk_norm="projection",
        norm_before=False,
        norm_after=True,
    )


FAMILY = Family(
    huggingface=("Olmo2ForCausalLM",),
    gguf=("olmo2",),
    read_config=read_config,
    read_gguf=read_gguf,
    parameters=decoder.parameters,
    layer_parameters=functools.partial(
        decoder.layer_parameters, norms=("", "post_attention_layernorm", "", "post_feedforward_layernorm")
    ),
    gguf_names={
        **decoder.GGUF_NAMES,
        "post_attention_layernorm": "post_attention_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
    forward=decoder.forward,
    logits=decoder.logits,
    states=decoder.states,
)
