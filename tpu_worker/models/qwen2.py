"""Qwen 2 and 2.5: Llama with biases on queries, keys and values, and windows in the upper layers if asked for (Qwen team 2024)."""

from tpu_worker.models import decoder
from tpu_worker.models.family import Family
from tpu_worker.models.files import ConfigJson, GgufFile
from tpu_worker.models.spec import ModelSpec


def read_config(file: ConfigJson) -> ModelSpec:
    """See Family."""
    return decoder.spec_with_windows(file, file.read(decoder.WindowedConfig), qkv_bias=True)


def read_gguf(file: GgufFile) -> ModelSpec:
    """See Family."""
    return decoder.spec_from_gguf(file, qkv_bias=True)


FAMILY = Family(
    huggingface=("Qwen2ForCausalLM",),
    gguf=("qwen2",),
    read_config=read_config,
    read_gguf=read_gguf,
    parameters=decoder.parameters,
    layer_parameters=decoder.layer_parameters,
    gguf_names=decoder.GGUF_NAMES,
    forward=decoder.forward,
    logits=decoder.logits,
    states=decoder.states,
)
