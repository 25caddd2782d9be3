"""Gemma 3: Gemma 2 with norms on queries and keys in place of capped scores, and a rotation of its own in layers with windows.

Of checkpoints that also see, the text is served (Gemma team 2025).
"""

import functools
from collections.abc import Mapping
from typing import Any

from protocol.errors import ModelError
from tpu_worker.models import decoder, gemma2
from tpu_worker.models.family import Family
from tpu_worker.models.files import ConfigJson, GgufFile
from tpu_worker.models.rope import Rope, rope_from_config
from tpu_worker.models.spec import ModelSpec

_PATTERN = 6  # every sixth layer has no window
_LAYERS_OF_27B = 62
_GLOBAL_THETA, _LOCAL_THETA = 1e6, 1e4


class Config(gemma2.Config):
    """What it reads beyond Gemma 2's, or with other defaults."""

    vocab_size: int = 262208
    max_position_embeddings: int = 131072
    final_logit_softcapping: float | None = None
    attn_logit_softcapping: float | None = None
    sliding_window_pattern: int = _PATTERN
    use_bidirectional_attention: bool | None = False
    rope_theta: float | None = None
    rope_local_base_freq: float | None = None


def read_config(file: ConfigJson) -> ModelSpec:
    """See Family."""
    config = file.read(Config)
    if config.attn_logit_softcapping is not None:  # transformers reads it, and does not apply it
        raise ModelError(f"{file.path}: attn_logit_softcapping {config.attn_logit_softcapping} is not supported: set it to null")
    if config.use_bidirectional_attention:
        raise ModelError(f"{file.path}: use_bidirectional_attention is not supported: such a model does not predict the next token")
    if config.sliding_window_pattern < 1:
        raise ModelError(f"{file.path}: sliding_window_pattern is {config.sliding_window_pattern}")
    ropes = {
        "full_attention": _rope(file, config, "full_attention", config.rope_theta, _GLOBAL_THETA, file.fields.get("rope_scaling")),
        "sliding_attention": _rope(file, config, "sliding_attention", config.rope_local_base_freq, _LOCAL_THETA, None),
    }
    return gemma2.spec_of(file, config, config.sliding_window_pattern, ropes, qk_norm="head")


def _rope(file: ConfigJson, config: Config, kind: str, theta: float | None, default: float, scaling: object) -> Rope:
    """The rotation in layers of a kind. Files either nest `rope_parameters` by kind, or say it in fields of their own."""
    nested = file.fields.get("rope_parameters") or {}
    if not isinstance(nested, Mapping) or any(not isinstance(value, Mapping | None) for value in nested.values()):
        raise ModelError(f"{file.path}: rope_parameters must be an object for each of {', '.join(decoder.LAYER_TYPES)}")
    fields: dict[str, Any] = {
        "rope_parameters": nested.get(kind),
        "rope_scaling": scaling,
        "rope_theta": theta,
        "max_position_embeddings": config.max_position_embeddings,
    }
    return rope_from_config(file.path, fields, config.head_dim, kind, default)


def read_gguf(file: GgufFile) -> ModelSpec:
    """See Family. Scaling is that of layers without windows."""
    heads = file.integer("attention.head_count")
    head_dim = file.integer("attention.key_length", file.integer("embedding_length") // max(1, heads))
    local = file.rope(head_dim, "rope.freq_base_swa", _LOCAL_THETA, scaled=False)
    pattern = file.integer("attention.sliding_window_pattern", _PATTERN)
    full = file.rope(head_dim, default_theta=_GLOBAL_THETA)
    return gemma2.spec_of_gguf(file, max(1, pattern), _LAYERS_OF_27B, local, rope=full, qk_norm="head")


FAMILY = Family(
    huggingface=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    gguf=("gemma3",),
    read_config=read_config,
    read_gguf=read_gguf,
    parameters=decoder.parameters,
    layer_parameters=functools.partial(decoder.layer_parameters, norms=gemma2.NORMS),
    gguf_names=gemma2.GGUF_NAMES,
    forward=decoder.forward,
    logits=decoder.logits,
    states=decoder.states,
    prefixes=decoder.TEXT_PREFIXES,
    left_out=decoder.VISION_PREFIXES,
)
