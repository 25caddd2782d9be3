"""The sizes of a model: what its steps cost follows from them, whatever its weights are."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

_TEXT = (
    "{num_layers} layers of width {hidden_size}, {num_heads} heads, {num_kv_heads} KV heads of {head_dim}, "
    "{num_experts} experts, MLP {intermediate_size}, vocabulary {vocab_size}"
)


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Of one model. 0: the files do not say it; where layers differ, the largest."""

    num_layers: int = 0
    hidden_size: int = 0
    num_heads: int = 0
    num_kv_heads: int = 0
    head_dim: int = 0
    intermediate_size: int = 0  # of the MLP, or of one expert
    num_experts: int = 0
    vocab_size: int = 0

    @property
    def digest(self) -> str:
        """All of it in words, from which `parse` makes the same sizes: models with the same digest take the same time."""
        return _TEXT.format(**{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def parse(cls, digest: str) -> "ModelSizes | None":
        """None: it is no digest."""
        match = _PATTERN.fullmatch(digest)
        return None if match is None else cls(**{name: int(number) for name, number in match.groupdict().items()})

    @property
    def head_cost(self) -> float:
        """Of the logits of a row, in tokens through the layers: about what `tpu_worker.warmup.Programs` is told of the weights."""
        attention = self.hidden_size * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        mlp = 3 * self.hidden_size * self.intermediate_size * max(1, self.num_experts)
        return self.hidden_size * self.vocab_size / max(1, self.num_layers * (attention + mlp))


_PATTERN = re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>\\d{1,10})", _TEXT))


def sizes_from_config(config: Mapping[str, Any], vocab_size: int) -> ModelSizes:
    """Of a Hugging Face config.json."""
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    return ModelSizes(
        num_layers=_size(config, "num_hidden_layers"),
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=_size(config, "num_key_value_heads") or heads,
        head_dim=_size(config, "head_dim") or hidden // max(1, heads),
        intermediate_size=_size(config, "moe_intermediate_size") or _size(config, "intermediate_size"),
        num_experts=_size(config, "num_experts") or _size(config, "num_local_experts"),
        vocab_size=vocab_size,
    )


def sizes_from_gguf(metadata: Mapping[str, Any], architecture: str, vocab_size: int) -> ModelSizes:
    """Of the metadata of a GGUF file."""

    def size(key: str) -> int:
        return _size(metadata, f"{architecture}.{key}")

    hidden, heads = size("embedding_length"), size("attention.head_count")
    return ModelSizes(
        num_layers=size("block_count"),
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=size("attention.head_count_kv") or heads,
        head_dim=size("attention.key_length") or hidden // max(1, heads),
        intermediate_size=size("expert_feed_forward_length") or size("feed_forward_length"),
        num_experts=size("expert_count"),
        vocab_size=vocab_size,
    )


def _size(metadata: Mapping[str, Any], key: str) -> int:
    value = metadata.get(key)
    given = value if isinstance(value, list) else [value]
    return max((one for one in given if isinstance(one, int) and not isinstance(one, bool) and 0 < one < 1 << 31), default=0)
