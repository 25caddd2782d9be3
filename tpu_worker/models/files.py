"""What a family reads of a model's files: the fields of a config.json, or the metadata of a GGUF file, each with its complaints."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from protocol.errors import ModelError
from protocol.gguf_header import GgufHeader
from tpu_worker.models.rope import Rope, rope_from_config, rope_scaling_from_gguf
from tpu_worker.models.spec import ModelSpec

Config = TypeVar("Config", bound=msgspec.Struct)

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
        if (activation := self.fields.get("hidden_act", "silu")) != "silu":
            raise ModelError(f"{self.path}: hidden_act {activation!r} is not supported, only 'silu'")
        return config

    def rope(self, head_dim: int, layer_type: str | None = None) -> Rope:
        """The rotation of heads of this size, in layers of this type. Raises ModelError."""
        return rope_from_config(self.path, self.fields, head_dim, layer_type)


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

    def rope(self, head_dim: int) -> Rope:
        """The rotation of heads of this size, in every layer. Raises ModelError."""
        theta = self.number("rope.freq_base", 10000.0)
        if not theta > 0:
            raise ModelError(f"{self.path}: {self.architecture}.rope.freq_base is {theta}, but must be above 0")
        for key in ("rope.scaling.factor", "rope.scale_linear"):
            factor = self.number(key) if self.says(key) else None
            if factor is not None:
                break
        kind = self.header.metadata.get(f"{self.architecture}.rope.scaling.type")
        original = "rope.scaling.original_context_length"
        context = self.integer(original) if self.says(original) else None
        scaling = rope_scaling_from_gguf(self.path, kind, factor, context)
        if scaling is not None and scaling.kind == "yarn":
            scaling = replace(
                scaling,
                beta_fast=self.number("rope.scaling.yarn_beta_fast", scaling.beta_fast),
                beta_slow=self.number("rope.scaling.yarn_beta_slow", scaling.beta_slow),
                amplitude=scaling.amplitude * self.number("rope.scaling.attn_factor", 1.0),
            )
        return Rope(head_dim, theta, scaling)


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
