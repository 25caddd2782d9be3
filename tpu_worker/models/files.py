"""What a family reads of a model's files: the fields of a config.json, or the metadata of a GGUF file, each with its complaints."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec

from protocol.errors import ModelError
from protocol.gguf_header import GgufHeader
from tpu_worker.models.rope import Rope, RopeScaling, rope_from_config, rope_scaling_from_gguf
from tpu_worker.models.spec import ModelSpec

Config = TypeVar("Config", bound=msgspec.Struct)

# Fields that change what is computed, and the values that change nothing; families that read a field decide for themselves.
_PLAIN: Mapping[str, object] = MappingProxyType(
    {
        "hidden_act": "silu",
        "hidden_activation": "silu",
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "query_pre_attn_scalar": None,
        "use_bidirectional_attention": False,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "attention_multiplier": None,
        "logits_scaling": 1.0,
        "no_rope_layers": None,
        "clip_qkv": None,
        "attention_chunk_size": None,
    }
)

_MOST_LAYERS = 1024  # the deepest models have a few hundred


@dataclass(frozen=True, slots=True)
class ConfigJson:
    """A Hugging Face config.json."""

    path: Path
    architecture: str
    fields: Mapping[str, Any]

    def read(self, kind: type[Config]) -> Config:
        """The fields that a family reads. Raises ModelError naming a field that is missing or of another type."""
        try:
            config = msgspec.convert(self.fields, kind)
        except msgspec.ValidationError as error:
            raise ModelError(f"{self.path}: {error}") from error
        for name, plain in _PLAIN.items():
            if name not in kind.__struct_fields__ and (value := self.fields.get(name, plain)) not in (plain, None):
                wanted = f"only {plain!r}" if plain else f"{self.architecture} has no such thing: leave it out"
                raise ModelError(f"{self.path}: {name} {value!r} is not supported, {wanted}")
        return config

    def rope(self, head_dim: int, layer_type: str | None = None, default_theta: float = 10000.0) -> Rope:
        """The rotation of heads of this size, in layers of this type. Raises ModelError."""
        return rope_from_config(self.path, self.fields, head_dim, layer_type, default_theta)


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The header of a GGUF file."""

    path: Path
    architecture: str
    header: GgufHeader

    def number(self, key: str, default: float | None = None) -> float:
        """A field of the architecture. Raises ModelError when it is missing and has no default, or is no number."""
        value = self.header.metadata.get(f"{self.architecture}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ModelError(f"{self.path}: {self.architecture}.{key} is {'missing' if value is None else repr(value)}")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """`number`, of what must be whole."""
        value = self.number(key, default)
        if value != int(value):
            raise ModelError(f"{self.path}: {self.architecture}.{key} is {value}, not a whole number")
        return int(value)

    def flag(self, key: str, *, default: bool) -> bool:
        """A field of the architecture that is true or false. Raises ModelError when it is neither."""
        value = self.header.metadata.get(f"{self.architecture}.{key}", default)
        if not isinstance(value, bool):
            raise ModelError(f"{self.path}: {self.architecture}.{key} is {value!r}, not true or false")
        return value

    def says(self, key: str) -> bool:
        """Whether the file has this field of the architecture."""
        return f"{self.architecture}.{key}" in self.header.metadata

    def has(self, tensor: str) -> bool:
        """Whether the file holds this tensor."""
        return tensor in self.header.tensors

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding. Raises ModelError when it is missing."""
        embedding = self.header.tensors.get("token_embd.weight")
        if embedding is None:
            raise ModelError(f"{self.path}: tensor token_embd.weight is missing")
        return embedding.shape[0]

    def rope(self, head_dim: int, theta: str = "rope.freq_base", default_theta: float = 10000.0, *, scaled: bool = True) -> Rope:
        """The rotation of heads of this size; theta: the field that its base is in. Raises ModelError."""
        size, base = self.integer("rope.dimension_count", head_dim), self.number(theta, default_theta)
        if not 2 <= size <= head_dim or size % 2:
            raise ModelError(f"{self.path}: {self.architecture}.rope.dimension_count is {size} of heads of {head_dim}")
        if not base > 0:
            raise ModelError(f"{self.path}: {self.architecture}.{theta} is {base}, but must be above 0")
        return Rope(size, base, self._rope_scaling() if scaled else None)

    def _rope_scaling(self) -> RopeScaling | None:
        factor = None
        for key in ("rope.scaling.factor", "rope.scale_linear"):
            if self.says(key) and (factor := self.number(key)):
                break
        if self.has("rope_factors_long.weight"):
            original = self.integer("rope.scaling.original_context_length")
            amplitude = self.number("rope.scaling.attn_factor", 1.0)
            return RopeScaling("longrope", factor or 1.0, original_context=original, amplitude=amplitude)
        kind = self.header.metadata.get(f"{self.architecture}.rope.scaling.type")
        return rope_scaling_from_gguf(
            self.path, kind, factor or None, lambda key, default: self.number(f"rope.scaling.{key}", default)
        )


def check_num_layers(path: object, num_layers: int) -> int:
    """The number. Raises ModelError when no model has so many, before anything is made as many times."""
    if not 1 <= num_layers <= _MOST_LAYERS:
        raise ModelError(f"{path}: {num_layers} layers: there must be between 1 and {_MOST_LAYERS}")
    return num_layers


def check_sizes(path: object, spec: ModelSpec) -> ModelSpec:
    """The spec. Raises ModelError naming a size that cannot be."""
    for name in ("vocab_size", "hidden_size", "context_length"):
        _at_least_one(path, name, getattr(spec, name))
    for layer in dict.fromkeys(spec.layers):
        for name in ("intermediate_size", "num_heads", "num_kv_heads"):
            _at_least_one(path, name, getattr(layer, name))
        if layer.head_dim < 2 or layer.head_dim % 2:
            raise ModelError(f"{path}: heads of {layer.head_dim} cannot be rotated in pairs")
        if layer.num_heads % layer.num_kv_heads:
            raise ModelError(f"{path}: {layer.num_heads} heads cannot share {layer.num_kv_heads} key and value heads evenly")
        if layer.sliding_window is not None:
            _at_least_one(path, "sliding_window", layer.sliding_window)
        if layer.experts is not None:
            _at_least_one(path, "number of experts", layer.experts.count)
            _at_least_one(path, "number of experts per token", layer.experts.chosen)
            if layer.experts.chosen > layer.experts.count:
                raise ModelError(f"{path}: {layer.experts.chosen} experts per token of {layer.experts.count} in all")
    return spec


def _at_least_one(path: object, name: str, value: int) -> None:
    if value < 1:
        raise ModelError(f"{path}: {name} is {value}")
