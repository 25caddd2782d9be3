"""Mixtral: Mistral with experts in place of its MLP, of which each token goes to some (Jiang et al. 2024).

GGUF files call it llama, whose file reads them.
"""

import functools
from dataclasses import replace

import msgspec

from tpu_worker.models import decoder
from tpu_worker.models.experts import Names
from tpu_worker.models.family import Family
from tpu_worker.models.files import ConfigJson, check_num_layers
from tpu_worker.models.spec import ExpertsSpec, ModelSpec


class Config(msgspec.Struct):
    """The fields of a config.json that this family reads; the defaults are those of transformers."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = 8
    head_dim: int | None = None
    max_position_embeddings: int = 4096 * 32
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    sliding_window: int | None = None
    num_local_experts: int = 8
    num_experts_per_tok: int = 2


def read_config(file: ConfigJson) -> ModelSpec:
    """See Family."""
    config = file.read(Config)
    layer = replace(
        decoder.layer_from_config(config, file.rope),
        sliding_window=config.sliding_window,
        experts=ExpertsSpec(config.num_local_experts, config.num_experts_per_tok, renormalised=True),
    )
    return decoder.spec_from_config(file, config, (layer,) * check_num_layers(file.path, config.num_hidden_layers))


FAMILY = Family(
    huggingface=("MixtralForCausalLM",),
    gguf=(),
    read_config=read_config,
    read_gguf=decoder.spec_from_gguf,
    parameters=decoder.parameters,
    layer_parameters=functools.partial(
        decoder.layer_parameters, names=Names("block_sparse_moe.gate", "block_sparse_moe.experts", "w1", "w3", "w2")
    ),
    gguf_names=decoder.GGUF_NAMES,
    modules={"mlp.gate": "block_sparse_moe.gate"},  # as transformers 5 has it, beside experts in one tensor
    forward=decoder.forward,
    logits=decoder.logits,
    states=decoder.states,
)
