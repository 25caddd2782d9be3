"""What a model is: its sizes and constants, layer by layer, and the specification of each parameter."""

from dataclasses import dataclass
from typing import Literal

from tpu_worker.models.rope import Rope


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """Sizes and constants of one layer; layers may differ in any of them."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rope: Rope
    sliding_window: int | None = None  # tokens that a token attends to, itself included
    qkv_bias: bool = False
    output_bias: bool = False  # on the attention's output projection
    mlp_bias: bool = False
    qk_norm: bool = False  # queries and keys are normed, head by head, before they are rotated


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Sizes and constants of a decoder-only transformer."""

    architecture: str  # as the file names it
    vocab_size: int
    hidden_size: int
    context_length: int  # tokens that the model was made for
    norm_eps: float
    tied_embeddings: bool
    layers: tuple[LayerSpec, ...]

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """The different rotations, in the order of the layers that use them first."""
        return tuple(dict.fromkeys(layer.rope for layer in self.layers))


LogicalAxis = Literal["vocab", "embed", "heads", "kv_heads", "head_dim", "mlp", "rotary"]


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of the file, under its Hugging Face name, that becomes rows of a parameter."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[LogicalAxis | None, ...]  # what each dimension ranges over: a mesh maps names to chips


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """One parameter: the parts that are stacked along their first axis, and how it is used.

    "matrix" parameters go through the platform's `pack`, "gated" too: its first half of rows gates its second half.
    "vector" stay float32; "table" is looked up by row.
    """

    kind: Literal["matrix", "gated", "vector", "table"]
    parts: tuple[Part, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape after stacking."""
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])
