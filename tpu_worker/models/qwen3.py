"""Qwen 3: Llama with norms on the queries and keys of each head, which may be wider than hidden_size / heads (Qwen team 2025)."""

from tpu_worker.models import decoder
from tpu_worker.models.family import Family
from tpu_worker.models.files import ConfigJson, GgufFile
from tpu_worker.models.spec import ModelSpec


class Config(decoder.WindowedConfig):
    """What it reads beyond those, or with other defaults."""

    head_dim: int | None = 128
    attention_bias: bool = False


def read_config(file: ConfigJson) -> ModelSpec:
    """See Family."""
    config = file.read(Config)
    bias = config.attention_bias
    return decoder.spec_with_windows(file, config, qkv_bias=bias, output_bias=bias, qk_norm="head")


def read_gguf(file: GgufFile) -> ModelSpec:
    """See Family."""
    return decoder.spec_from_gguf(file, qk_norm="head")


FAMILY = Family(
    huggingface=("Qwen3ForCausalLM",),
    gguf=("qwen3",),
    read_config=read_config,
    read_gguf=read_gguf,
    parameters=decoder.parameters,
    layer_parameters=decoder.layer_parameters,
    gguf_names=decoder.GGUF_NAMES,
    forward=decoder.forward,
    logits=decoder.logits,
    states=decoder.states,
)
