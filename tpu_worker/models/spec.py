"""What a model is: its sizes and constants, and the specification of each parameter."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from protocol.codec import Float32Array


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the context that the model was first trained on.

    "linear" divides every frequency by `factor`. "llama3" (Meta's Llama 3.1 reference code) divides the low ones, keeps the high
    ones, and blends in between.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192  # tokens


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Sizes and constants of a decoder-only transformer of the Llama family."""

    architecture: str  # as the file names it
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_length: int  # tokens that the model was made for
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    tied_embeddings: bool = False
    attention_bias: bool = False  # on the q, k and v projections
    output_bias: bool = False  # on the attention's output projection
    mlp_bias: bool = False
    sliding_window: int | None = None  # tokens that a token attends to, itself included

    def inverse_frequencies(self) -> Float32Array:
        """Rotary frequencies in radians per position, [head_dim // 2] float32."""
        exponents = np.arange(0, self.head_dim, 2, dtype=np.float32) / np.float32(self.head_dim)
        frequencies = (1.0 / np.float32(self.rope_theta) ** exponents).astype(np.float32)
        scaling = self.rope_scaling
        if scaling is None:
            return frequencies
        if scaling.kind == "linear":
            return frequencies / np.float32(scaling.factor)
        wavelengths = 2 * np.pi / frequencies
        share = (scaling.original_context / wavelengths - scaling.low_freq_factor) / (
            scaling.high_freq_factor - scaling.low_freq_factor
        )
        kept = np.clip(share, 0.0, 1.0)
        return (frequencies * (kept + (1 - kept) / scaling.factor)).astype(np.float32)


LogicalAxis = Literal["vocab", "embed", "heads", "kv_heads", "mlp", "rotary"]


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
