"""Weights of few bits in blocks of inputs, each with a scale and perhaps a minimum: how GGUF files hold them, and int8 is made."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.codec import Float32Array

BLOCK = 32  # inputs that share a scale


@dataclass(frozen=True, slots=True)
class BlockMatrix:
    """A weight [out, in] = scales * quants + minima, the latter two for blocks of `BLOCK` inputs. `in` is whole blocks.

    Four bits come with minima, eight bits without: those are the formats that there are kernels for.
    """

    quants: npt.NDArray[Any]  # [out, in] uint8 from 0 to 15, or int8
    scales: Float32Array  # [out, in / BLOCK]
    minima: Float32Array | None  # the same, of four bits

    def __post_init__(self) -> None:
        """Raises ValueError unless the parts belong together: C++ reads as far as the shapes say."""
        rows, blocks = self.scales.shape
        if self.quants.shape != (rows, blocks * BLOCK) or (self.minima is not None and self.minima.shape != (rows, blocks)):
            raise ValueError(f"quants {self.quants.shape} are not in blocks with scales {self.scales.shape} and as many minima")

    @property
    def bits(self) -> int:
        """Of a weight."""
        return 8 if self.minima is None else 4

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        out, width = self.quants.shape
        return out, width

    def rows(self, order: npt.NDArray[np.intp]) -> "BlockMatrix":
        """These rows, in this order."""
        return BlockMatrix(self.quants[order], self.scales[order], None if self.minima is None else self.minima[order])

    def values(self) -> Float32Array:
        """The weights that it stands for."""
        in_blocks = self.quants.reshape(*self.scales.shape, BLOCK) * self.scales[..., None]
        if self.minima is not None:
            in_blocks += self.minima[..., None]
        return in_blocks.reshape(self.shape)


def concatenate(matrices: Sequence[BlockMatrix]) -> BlockMatrix:
    """The rows of all, which have the same number of bits. Raises ValueError if they do not."""
    if len(matrices) == 1:
        return matrices[0]
    minima = [matrix.minima for matrix in matrices if matrix.minima is not None]
    return BlockMatrix(
        np.concatenate([matrix.quants for matrix in matrices]),
        np.concatenate([matrix.scales for matrix in matrices]),
        np.concatenate(minima) if minima else None,
    )


def quantise(weight: npt.NDArray[Any]) -> BlockMatrix:
    """A weight [out, in] of any float type in eight bits, the largest of each block at 127.

    `in` is filled up with zeros to whole blocks. Scales are rounded to float16, as the kernels keep them.
    """
    out, width = weight.shape
    padded = np.zeros((out, -(-width // BLOCK), BLOCK), np.float32)
    padded.reshape(out, -1)[:, :width] = weight
    largest = np.maximum(padded.max(axis=2), -padded.min(axis=2))
    steps = largest / 127
    nearest = steps.astype(np.float16)
    # Never a smaller scale than the largest needs: it would be clipped, by as much as small numbers of float16 are apart.
    scales = np.where(nearest < steps, np.nextafter(nearest, np.float16(np.inf)), nearest).astype(np.float32)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)
    padded *= inverse[..., None]
    np.rint(padded, out=padded)
    quants = np.clip(padded, -127, 127, out=padded).astype(np.int8)
    return BlockMatrix(quants.reshape(out, -1), scales, None)
