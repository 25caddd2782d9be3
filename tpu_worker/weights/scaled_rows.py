"""Weights of eight bits with a scale for each output, which stay so on accelerators.

Of integers the largest of an output becomes 127, and no weight is off by more than a 254th of it. Of FP8 (e4m3) it becomes 448, and
a weight is off by a 16th of itself at most, or, where it is less than a 28,672nd of the largest, by 2^-10 / 448 of that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

from protocol.codec import Float32Array

NarrowType: TypeAlias = Literal["int8", "fp8"]

DTYPES: Mapping[NarrowType, np.dtype[Any]] = MappingProxyType({"int8": np.dtype(np.int8), "fp8": np.dtype(ml_dtypes.float8_e4m3fn)})
_LARGEST: Mapping[NarrowType, float] = MappingProxyType({"int8": 127.0, "fp8": 448.0})
_AT_ONCE = 1 << 22  # weights that are converted together: so that what that takes beside them stays small


@dataclass(frozen=True, slots=True)
class ScaledRows:
    """weight[o, i] = scales[o] * numbers[o, i]."""

    numbers: npt.NDArray[Any]  # [out, in] int8 or FP8 (e4m3)
    scales: Float32Array  # [out]

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in)."""
        return self.numbers.shape

    def values(self) -> Float32Array:
        """The weights that it stands for."""
        values: Float32Array = self.numbers.astype(np.float32)
        values *= self.scales[:, None]
        return values


def quantise_rows(weight: npt.NDArray[Any], kind: NarrowType) -> ScaledRows:
    """A weight [out, in] of any float type, each number rounded to the nearest."""
    out, width = weight.shape
    numbers, scales = np.empty((out, width), DTYPES[kind]), np.empty(out, np.float32)
    each = max(1, _AT_ONCE // width)
    for start in range(0, out, each):
        part = slice(start, start + each)
        wide = weight[part].astype(np.float32)
        scales[part] = np.maximum(wide.max(axis=1), -wide.min(axis=1)) / np.float32(_LARGEST[kind])
        # What is smaller than float32's normal numbers is as good as nothing, and has no inverse.
        inverse = np.divide(1, scales[part], out=np.zeros_like(scales[part]), where=scales[part] >= np.finfo(np.float32).tiny)
        wide *= inverse[:, None]
        if kind == "int8":
            np.rint(wide, out=wide)
        numbers[part] = np.clip(wide, -_LARGEST[kind], _LARGEST[kind], out=wide)
    return ScaledRows(numbers, scales)


def concatenate_rows(parts: Sequence[ScaledRows]) -> ScaledRows:
    """The rows of all, which are of one type."""
    if len(parts) == 1:
        return parts[0]
    return ScaledRows(np.concatenate([part.numbers for part in parts]), np.concatenate([part.scales for part in parts]))
