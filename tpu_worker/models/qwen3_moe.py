"""Qwen 3 MoE: Qwen 3 with experts in place of the MLP of most layers (Qwen team 2025)."""

from dataclasses import replace

import msgspec

from protocol.errors import ModelError
from tpu_worker.models import decoder
from tpu_worker.models.family import Family
from tpu_worker.models.files import ConfigJson, GgufFile, check_num_layers
from tpu_worker.models.spec import ExpertsSpec, ModelSpec


class Config(msgspec.Struct):
    """The fields of a config.json that this family reads; the defaults are those of transformers."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int = 6144  # of layers without experts
    moe_intermediate_size: int = 768
    num_experts: int | None = None
    num_local_experts: int | None = None  # the same, as transformers 5 writes it; 128 if neither is there
    num_experts_per_tok: int = 8
    norm_topk_prob: bool = False
    decoder_sparse_step: int = 1
    mlp_only_layers: list[int] | None = None
    num_key_value_heads: int | None = 4
    head_dim: int | None = None
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: int | None = 4096


def read_config(file: ConfigJson) -> ModelSpec:
    """See Family. Windows, where there are any, are those of all layers."""
    config = file.read(Config)
    num_layers = check_num_layers(file.path, config.num_hidden_layers)
    dense = config.mlp_only_layers or []
    if any(not 0 <= index < num_layers for index in dense):
        raise ModelError(f"{file.path}: mlp_only_layers {dense} names layers that are not among the {num_layers}")
    if config.decoder_sparse_step < 1:
        raise ModelError(f"{file.path}: decoder_sparse_step is {config.decoder_sparse_step}")
    count = _num_experts(file, config)
    layer = replace(
        decoder.layer_from_config(config, file.rope),
        sliding_window=config.sliding_window if config.use_sliding_window else None,
        qkv_bias=config.attention_bias,
        output_bias=config.attention_bias,
        qk_norm="head",
    )
    experts = ExpertsSpec(count, config.num_experts_per_tok, config.norm_topk_prob)
    sparse = replace(layer, experts=experts, intermediate_size=config.moe_intermediate_size)

    def is_sparse(index: int) -> bool:
        return count > 0 and index not in dense and (index + 1) % config.decoder_sparse_step == 0

    return decoder.spec_from_config(file, config, (sparse if is_sparse(index) else layer for index in range(num_layers)))


def _num_experts(file: ConfigJson, config: Config) -> int:
    said = {count for count in (config.num_experts, config.num_local_experts) if count is not None}
    if len(said) > 1:
        raise ModelError(f"{file.path}: num_experts is {config.num_experts}, num_local_experts is {config.num_local_experts}")
    return said.pop() if said else 128


def read_gguf(file: GgufFile) -> ModelSpec:
    """See Family."""
    return decoder.spec_from_gguf(file, qk_norm="head")


FAMILY = Family(
    huggingface=("Qwen3MoeForCausalLM",),
    gguf=("qwen3moe",),
    read_config=read_config,
    read_gguf=read_gguf,
    parameters=decoder.parameters,
    layer_parameters=decoder.layer_parameters,
    gguf_names=decoder.GGUF_NAMES,
    forward=decoder.forward,
    logits=decoder.logits,
    states=decoder.states,
)
