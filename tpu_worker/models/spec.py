"""What a model is: its sizes and constants, layer by layer, and the specification of each parameter."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy.typing as npt

from tpu_worker.models.layers import Activation
from tpu_worker.models.rope import Rope


@dataclass(frozen=True, slots=True)
class ExpertsSpec:
    """The mixture of experts in a layer, each of which is an MLP of the layer's `intermediate_size`."""

    count: int
    chosen: int  # by each token
    renormalised: bool  # the shares of those chosen add up to 1; else they are what a softmax over all experts gives them
    activation: Activation = "silu"
    router_bias: bool = False
    bias: bool = False  # on both products of each expert


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """Sizes and constants of one layer; layers may differ in any of them."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rope: Rope | None  # None: queries and keys are not rotated
    sliding_window: int | None = None  # tokens that a token attends to, itself included
    qkv_bias: bool = False
    output_bias: bool = False  # on the attention's output projection
    mlp_bias: bool = False
    qk_norm: Literal["head", "projection"] | None = None  # queries and keys are normed before they are rotated, over what
    scale: float | None = None  # of the scores; None: 1 / sqrt(head_dim)
    soft_cap: float | None = None  # c: a score s becomes c · tanh(s / c)
    position_scale: tuple[float, int] | None = None  # (b, n): queries at p are multiplied by 1 + b · log(1 + ⌊p / n⌋)
    activation: Activation = "silu"
    norm_before: bool = True  # of attention and MLP each: their inputs are normed
    norm_after: bool = False  # … and what they add to the residual is
    residual_scale: float = 1.0  # what they add is multiplied by it
    sinks: bool = False  # each head has a score that takes part in its softmax, and that nothing is weighted with
    experts: ExpertsSpec | None = None  # in place of the MLP


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
    embedding_scale: float = 1.0  # embeddings are multiplied by it
    logit_scale: float = 1.0  # … and logits by this
    logit_soft_cap: float | None = None  # c: a logit x becomes c · tanh(x / c)
    norm_offset: float = 0.0  # what is added to the weights of norms as they are stored

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """The different rotations, in the order of the layers that use them first."""
        return tuple(dict.fromkeys(layer.rope for layer in self.layers if layer.rope is not None))


# "choices" are experts, too: of a router, of which every chip has all.
LogicalAxis = Literal["vocab", "embed", "heads", "kv_heads", "head_dim", "mlp", "rotary", "experts", "choices"]


@dataclass(frozen=True, slots=True)
class Within:
    """Where a part lies in a tensor that holds others, too."""

    name: str
    shape: tuple[int, ...]  # of the whole tensor
    index: tuple[int | range | None, ...]  # along its first dimensions what the part has of them; None: all
    transposed: bool = False  # the part is what is found there, turned round
    # It is the blocks of MXFP4, [..., blocks, bytes], as in gpt-oss: a tensor that is named …_scales instead of …_blocks has their
    # scales.
    mxfp4: bool = False

    def take(self, tensor: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The part of a tensor of this shape."""
        slices = tuple(slice(one.start, one.stop, one.step) if isinstance(one, range) else one for one in self.index)
        found = tensor[tuple(slice(None) if one is None else one for one in slices)]
        return found.T if self.transposed else found


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of the file, under its Hugging Face name, that becomes rows of a parameter."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[LogicalAxis | None, ...]  # what each dimension ranges over: a mesh maps names to chips
    expert: int | None = None  # whose it is; GGUF files hold those of all experts in one tensor
    within: tuple[Within, ...] = ()  # where it may lie in Hugging Face checkpoints instead


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """One parameter: the parts that are stacked along their first axis, and how it is used.

    "matrix" parameters go through the platform's `pack`, "gated" too: its first half of rows gates its second half.
    "vector" stay float32; "table" is looked up by row.
    """

    kind: Literal["matrix", "gated", "vector", "table"]
    parts: tuple[Part, ...]
    num_experts: int = 0  # of a matrix: one for each of so many, whose parts follow one another
    offset: float = 0.0  # of a vector: added to what is stored

    def of_expert(self, expert: int) -> "ParameterSpec":
        """One expert's matrix."""
        each = len(self.parts) // self.num_experts
        return ParameterSpec(self.kind, self.parts[expert * each : (expert + 1) * each])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape after stacking."""
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])
