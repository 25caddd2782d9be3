"""Weights of few bits in blocks of inputs, each with a scale and perhaps a minimum, as GGUF files hold them; int8 is made so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.codec import Float32Array
from protocol.ggml_types import GGML_BLOCKS
from tpu_worker.weights import scaled_blocks

INT8 = "Q8_0"  # what `quantise` makes
BLOCK = 32  # inputs that share one of its scales, and that kernels take at once

# ggml's numbers of the kinds of blocks, by its names, and those of `scaled_blocks`. Of what else there is a weight is not made.
KINDS: Mapping[str, int] = MappingProxyType(
    {
        "Q4_0": 2,
        "Q4_1": 3,
        "Q5_0": 6,
        "Q5_1": 7,
        "Q8_0": 8,
        "Q2_K": 10,
        "Q3_K": 11,
        "Q4_K": 12,
        "Q5_K": 13,
        "Q6_K": 14,
        "IQ2_XXS": 16,
        "IQ2_XS": 17,
        "IQ3_XXS": 18,
        "IQ1_S": 19,
        "IQ4_NL": 20,
        "IQ3_S": 21,
        "IQ2_S": 22,
        "IQ4_XS": 23,
        "IQ1_M": 29,
        "TQ1_0": 34,
        "TQ2_0": 35,
        "MXFP4": 39,
        "NVFP4": 40,
        **scaled_blocks.NUMBERS,
    }
)
# Where the float16s lie in a block of those that have kernels: all others of their bytes stand for finite numbers.
_HALVES: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "Q4_0": (0,),
        "Q4_1": (0, 2),
        "Q5_0": (0,),
        "Q5_1": (0, 2),
        "Q8_0": (0,),
        "Q2_K": (80, 82),
        "Q3_K": (108,),
        "Q4_K": (0, 2),
        "Q5_K": (0, 2),
        "Q6_K": (208,),
        "IQ4_NL": (0,),
        "IQ4_XS": (0,),
    }
)


@dataclass(frozen=True, slots=True)
class BlockMatrix:
    """A weight [out, in] in blocks of one of `KINDS`; `in` is whole blocks."""

    kind: str
    rows: npt.NDArray[np.uint8]  # [out, bytes of a row], as a GGUF file or `scaled_blocks` has them

    def __post_init__(self) -> None:
        """Raises ValueError unless rows are whole blocks: C++ reads as far as the shape says."""
        if self.rows.ndim != 2 or self.rows.dtype != np.uint8 or self.rows.shape[1] % self._sizes[1]:
            raise ValueError(f"{self.rows.dtype} {self.rows.shape} are no rows in blocks of {self.kind}")

    @property
    def _sizes(self) -> tuple[int, int]:
        return scaled_blocks.bytes_of(self.kind) if self.kind in scaled_blocks.SPANS else GGML_BLOCKS[KINDS[self.kind]]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        inputs, size = self._sizes
        return self.rows.shape[0], self.rows.shape[1] // size * inputs

    def take(self, order: npt.NDArray[np.intp]) -> "BlockMatrix":
        """These rows, in this order."""
        return BlockMatrix(self.kind, self.rows[order])

    def is_finite(self) -> bool:
        """Whether all weights are numbers."""
        if self.kind in scaled_blocks.SPANS:
            return scaled_blocks.is_finite(self.kind, self.rows)
        if self.kind not in _HALVES:
            return bool(np.isfinite(self.values()).all())
        blocks = self.rows.reshape(len(self.rows), -1, self._sizes[1])
        halves = (np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16) for at in _HALVES[self.kind])
        return all(bool(np.isfinite(half).all()) for half in halves)

    def values(self) -> Float32Array:
        """The weights that it stands for."""
        if self.kind in scaled_blocks.SPANS:
            return scaled_blocks.values_of(self.kind, self.rows)
        from gguf.constants import GGMLQuantizationType  # half a second of imports that kernels for blocks do not need
        from gguf.quants import dequantize

        values: Float32Array = dequantize(self.rows, GGMLQuantizationType(KINDS[self.kind])).astype(np.float32, copy=False)
        return values


def concatenate(matrices: Sequence[BlockMatrix]) -> tuple[BlockMatrix, ...]:
    """The rows of all: neighbours of one kind in one matrix."""
    runs: list[list[BlockMatrix]] = []
    for matrix in matrices:
        if runs and runs[-1][0].kind == matrix.kind:
            runs[-1].append(matrix)
        else:
            runs.append([matrix])
    return tuple(
        run[0] if len(run) == 1 else BlockMatrix(run[0].kind, np.concatenate([matrix.rows for matrix in run])) for run in runs
    )


def quantise(weight: npt.NDArray[Any]) -> BlockMatrix:
    """A weight [out, in] of any float type in eight bits, the largest of each block of 32 at 127.

    `in` is filled up with zeros to whole blocks. Scales are rounded to float16, as the blocks keep them.
    """
    out, width = weight.shape
    padded = np.zeros((out, -(-width // BLOCK), BLOCK), np.float32)
    padded.reshape(out, -1)[:, :width] = weight
    largest = np.maximum(padded.max(axis=2), -padded.min(axis=2))
    steps = largest / 127
    nearest = steps.astype(np.float16)
    # Never a smaller scale than the largest needs: it would be clipped, by as much as small numbers of float16 are apart.
    halves = np.where(nearest < steps, np.nextafter(nearest, np.float16(np.inf)), nearest)
    scales = halves.astype(np.float32)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)
    padded *= inverse[..., None]
    np.rint(padded, out=padded)
    quants = np.clip(padded, -127, 127, out=padded).astype(np.int8)
    blocks = np.concatenate([halves[..., None].view(np.uint8), quants.view(np.uint8)], axis=2)
    return BlockMatrix(INT8, blocks.reshape(out, -1))
