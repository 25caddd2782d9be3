"""A weight of few bits, however a checkpoint stored it: numbers, scales, and zero points."""

from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from protocol.codec import Float32Array
from protocol.quantization_config import WeightFormat
from tpu_worker.weights.blocks import BlockMatrix
from tpu_worker.weights.scaled_blocks import SPANS, kind_of, rows_of
from tpu_worker.weights.scaled_rows import NarrowType, ScaledRows

FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)


@dataclass(frozen=True, slots=True)
class ScaledMatrix:
    """weight[o, i] = scales[o, i // group] * (numbers[o, i] - zeros[o, i // group])."""

    numbers: npt.NDArray[Any]  # [out, in]: uint8 of 4 bits, int8, or FP8 (e4m3)
    scales: Float32Array  # [out, groups]
    group: int  # inputs that share a scale; the last group may have fewer
    zeros: npt.NDArray[np.int8] | None = None  # [out, groups]; None: 0
    groups: npt.NDArray[np.intp] | None = None  # [in]: which group each input is of; None: i // group

    def take(self, rows: range) -> "ScaledMatrix":
        """These rows of it."""
        part = slice(rows.start, rows.stop)
        zeros = None if self.zeros is None else self.zeros[part]
        return replace(self, numbers=self.numbers[part], scales=self.scales[part], zeros=zeros)

    def is_finite(self) -> bool:
        """Whether all weights are numbers."""
        finite = bool(np.isfinite(self.scales).all())
        if self.numbers.dtype == FLOAT8:  # which has no infinities, and NaN under two signs
            finite = finite and not bool((self.numbers.view(np.uint8) & 0x7F == 0x7F).any())
        return finite

    def values(self) -> Float32Array:
        """The weights that it stands for, [out, in]."""
        (out, width), zeros = self.numbers.shape, None if self.zeros is None else self.zeros.astype(np.float32)
        values: Float32Array = _wide(self.numbers)
        if self.groups is None and width % self.group == 0:
            grouped = values.reshape(out, -1, self.group)
            if zeros is not None:
                grouped -= zeros[..., None]
            grouped *= self.scales[..., None]
            return values
        groups = np.arange(width) // self.group if self.groups is None else self.groups
        if zeros is not None:
            values -= zeros[:, groups]
        values *= self.scales[:, groups]
        return values

    def rows(self) -> ScaledRows:
        """The same, of a form that `narrow_type_of` knows, whose zero points are 0."""
        return ScaledRows(np.ascontiguousarray(self.numbers), np.ascontiguousarray(self.scales[:, 0]))

    def blocks(self, kind: str) -> BlockMatrix:
        """The same in blocks of one of `scaled_blocks.SPANS`, which `kept_kind` has found to hold it."""
        span = SPANS[kind]
        which = np.arange(0, self.numbers.shape[1], span) // self.group
        zeros = None if self.zeros is None else self.zeros[:, which]
        return BlockMatrix(kind, rows_of(kind, self.numbers, self.scales[:, which], zeros))


def _wide(numbers: npt.NDArray[Any]) -> Float32Array:
    """As float32, in an array of its own."""
    if numbers.dtype == FLOAT8:  # of which the library converts one after the other
        table = np.arange(256, dtype=np.uint8).view(FLOAT8).astype(np.float32)
        return table[numbers.view(np.uint8)]  # type: ignore[no-any-return]
    return np.ascontiguousarray(numbers).astype(np.float32)


def narrow_type_of(form: WeightFormat) -> NarrowType | None:
    """The eight bits that weights of this form are held in, if every output has one scale and no zero point."""
    if form.inputs is not None or not form.symmetric or form.storage not in ("float8", "int8"):
        return None
    return "fp8" if form.storage == "float8" else "int8"


def kept_kind(form: WeightFormat, num_inputs: int) -> str:
    """The kind of blocks that hold weights of this form exactly; else a name that no kernel knows, "INT4", "INT8" or "FP8"."""
    name = "FP8" if form.storage == "float8" else "INT8" if form.storage == "int8" else f"INT{form.bits}"
    return kind_of(name, num_inputs, form.inputs or num_inputs) or name


def spread_scales(scales: npt.NDArray[Any], form: WeightFormat, num_outputs: int) -> Float32Array:
    """Scales as they are stored, one for all outputs or for blocks of them, for each output: [out, groups] float32."""
    wide = scales.astype(np.float32).reshape(-1, scales.shape[-1] if scales.ndim > 1 else 1)
    if form.outputs == 1:
        return wide
    return np.ascontiguousarray(np.repeat(wide, form.outputs or num_outputs, axis=0)[:num_outputs])
