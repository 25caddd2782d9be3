"""From what a model's files say of themselves to a ModelSpec."""

from pathlib import Path

import msgspec

from protocol.errors import ModelError
from protocol.gguf_header import GgufHeader
from protocol.model_files import gguf_architecture, read_config
from tpu_worker.models.spec import ModelSpec, RopeScaling


class RopeScalingConfig(msgspec.Struct):
    """`rope_scaling`, or `rope_parameters` in newer files, of a config.json."""

    rope_type: str | None = None
    type: str | None = None  # the older name of rope_type
    rope_theta: float | None = None
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int | None = None


class HuggingFaceConfig(msgspec.Struct):
    """The fields of a config.json that the Llama family reads; the defaults are those of transformers."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScalingConfig | None = None
    rope_parameters: RopeScalingConfig | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None
    hidden_act: str = "silu"


def spec_from_config_json(path: str | Path) -> ModelSpec:
    """Reads a Hugging Face config.json. Raises ModelError naming the file and what is wrong or not supported."""
    architecture, fields = read_config(Path(path))
    try:
        config = msgspec.convert(fields, HuggingFaceConfig)
    except msgspec.ValidationError as error:
        raise ModelError(f"{path}: {error}") from error
    if config.hidden_act != "silu":
        raise ModelError(f"{path}: hidden_act {config.hidden_act!r} is not supported, only 'silu'")
    rope = config.rope_parameters or config.rope_scaling
    spec = ModelSpec(
        architecture=architecture,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads or config.num_attention_heads,
        head_dim=config.head_dim or config.hidden_size // max(1, config.num_attention_heads),
        context_length=config.max_position_embeddings,
        norm_eps=config.rms_norm_eps,
        rope_theta=(rope.rope_theta if rope else None) or config.rope_theta,
        rope_scaling=_rope_scaling(path, rope, config.max_position_embeddings),
        tied_embeddings=config.tie_word_embeddings,
        attention_bias=config.attention_bias,
        output_bias=config.attention_bias,
        mlp_bias=config.mlp_bias,
        sliding_window=config.sliding_window,
    )
    return _checked(path, spec)


def spec_from_gguf(path: str | Path, header: GgufHeader) -> ModelSpec:
    """Reads the metadata of a GGUF file. Raises ModelError naming the file and what is wrong or not supported."""
    fields = header.metadata
    architecture = gguf_architecture(path, header)

    def number(key: str, default: float | None = None) -> float:
        value = fields.get(f"{architecture}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ModelError(f"{path}: {architecture}.{key} is {'missing' if value is None else repr(value)}")
        return value

    heads, hidden = int(number("attention.head_count")), int(number("embedding_length"))
    head_dim = int(number("attention.key_length", hidden // max(1, heads)))
    if int(number("rope.dimension_count", head_dim)) != head_dim:
        raise ModelError(f"{path}: rotary positions on a part of each head ({architecture}.rope.dimension_count) are not supported")
    kind = fields.get(f"{architecture}.rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise ModelError(f"{path}: rope scaling {kind!r} is not supported")
    if f"{architecture}.expert_count" in fields:
        raise ModelError(f"{path}: mixtures of experts are not supported")
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelError(f"{path}: tensor token_embd.weight is missing")
    spec = ModelSpec(
        architecture=architecture,
        vocab_size=embedding.shape[0],
        hidden_size=hidden,
        intermediate_size=int(number("feed_forward_length")),
        num_layers=int(number("block_count")),
        num_heads=heads,
        num_kv_heads=int(number("attention.head_count_kv", heads)),
        head_dim=head_dim,
        context_length=int(number("context_length")),
        norm_eps=number("attention.layer_norm_rms_epsilon"),
        rope_theta=number("rope.freq_base", 10000.0),
        rope_scaling=RopeScaling("linear", number("rope.scaling.factor")) if kind == "linear" else None,
        tied_embeddings="output.weight" not in header.tensors,
        attention_bias="blk.0.attn_q.bias" in header.tensors,
        output_bias="blk.0.attn_output.bias" in header.tensors,
        mlp_bias="blk.0.ffn_up.bias" in header.tensors,
    )
    return _checked(path, spec)


def _rope_scaling(path: str | Path, rope: RopeScalingConfig | None, context: int) -> RopeScaling | None:
    kind = (rope.rope_type or rope.type or "default") if rope else "default"
    if rope is None or kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", rope.factor)
    if kind == "llama3":
        original = rope.original_max_position_embeddings or context
        return RopeScaling("llama3", rope.factor, rope.low_freq_factor, rope.high_freq_factor, original)
    raise ModelError(f"{path}: rope scaling {kind!r} is not supported, only 'linear' and 'llama3'")


def _checked(path: str | Path, spec: ModelSpec) -> ModelSpec:
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "context_length"):
        if getattr(spec, name) < 1:
            raise ModelError(f"{path}: {name} is {getattr(spec, name)}")
    if spec.head_dim < 2 or spec.head_dim % 2:
        raise ModelError(f"{path}: heads of {spec.head_dim} cannot be rotated in pairs")
    if spec.num_heads % spec.num_kv_heads:
        raise ModelError(f"{path}: {spec.num_heads} heads cannot share {spec.num_kv_heads} key and value heads evenly")
    return spec
