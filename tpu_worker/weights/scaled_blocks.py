"""Blocks that no GGUF file has: numbers of four or eight bits, or FP8, with a scale in float32 and a zero point, as checkpoints of
Hugging Face's hold them. So these stay what they are, to the bit.

A row is blocks one after the other, each: the scale, the zero point (int8; FP8 has none), and the numbers of its inputs, those of
four bits in ggml's order: of each 32 inputs the first half in the lower bits of 16 bytes, the second in the upper ones.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from protocol.codec import Float32Array

# Inputs of a block. The larger ones are what most checkpoints share a scale among, and cost fewer bytes.
SPANS: Mapping[str, int] = MappingProxyType(
    {"INT4_32": 32, "INT4_128": 128, "INT8_32": 32, "INT8_128": 128, "FP8_32": 32, "FP8_128": 128}
)
# By which kernels know them, beyond ggml's numbers.
NUMBERS: Mapping[str, int] = MappingProxyType({kind: 48 + index for index, kind in enumerate(SPANS)})
_SCALE, _ZERO = 4, 1  # bytes
_HALF = 16


def label(kind: str) -> str:
    """Without the size of its blocks: "INT4"."""
    return kind.partition("_")[0] if kind in SPANS else kind


def kind_of(name: str, num_inputs: int, group: int) -> str | None:
    """The kind with the largest blocks, of "INT4", "INT8" or "FP8", for so many inputs of which each `group` share a scale."""
    fits = [kind for kind, span in SPANS.items() if label(kind) == name and num_inputs % span == 0]
    return max((kind for kind in fits if group % SPANS[kind] == 0 or group >= num_inputs), key=SPANS.__getitem__, default=None)


def bytes_of(kind: str) -> tuple[int, int]:
    """Inputs and bytes of a block."""
    span = SPANS[kind]
    return span, _SCALE + {"INT4": _ZERO + span // 2, "INT8": _ZERO + span, "FP8": span}[label(kind)]


def rows_of(
    kind: str, numbers: npt.NDArray[Any], scales: Float32Array, zeros: npt.NDArray[np.int8] | None
) -> npt.NDArray[np.uint8]:
    """Rows [out, bytes] of numbers [out, in], and of each block its scale and zero point (None: 0), [out, in / span]."""
    out, span = len(numbers), SPANS[kind]
    rows = np.empty((out, scales.shape[1], bytes_of(kind)[1]), np.uint8)
    rows[..., :_SCALE] = np.ascontiguousarray(scales, np.float32)[..., None].view(np.uint8)
    at = _SCALE
    if label(kind) != "FP8":
        rows[..., at] = 0 if zeros is None else zeros.view(np.uint8)
        at += _ZERO
    if label(kind) == "INT4":
        halves = numbers.reshape(out, -1, span // 32, 2, _HALF)
        rows[..., at:] = (halves[..., 0, :] | halves[..., 1, :] << 4).reshape(out, -1, span // 2)
    else:
        rows[..., at:] = np.ascontiguousarray(numbers).view(np.uint8).reshape(out, -1, span)
    return rows.reshape(out, -1)


def values_of(kind: str, rows: npt.NDArray[np.uint8]) -> Float32Array:
    """The weights [out, in] of such rows."""
    scales, zeros, numbers = _take_apart(kind, rows)
    values: Float32Array = (numbers - zeros[..., None]) * scales[..., None]
    return values.reshape(len(rows), -1)


def is_finite(kind: str, rows: npt.NDArray[np.uint8]) -> bool:
    """Whether all weights of such rows are numbers."""
    scales, _, numbers = _take_apart(kind, rows)
    return bool(np.isfinite(scales).all() and (label(kind) != "FP8" or np.isfinite(numbers).all()))


def _take_apart(kind: str, rows: npt.NDArray[np.uint8]) -> tuple[Float32Array, Float32Array, Float32Array]:
    """Scales and zero points [out, blocks], and numbers [out, blocks, span]."""
    blocks = rows.reshape(len(rows), -1, bytes_of(kind)[1])
    scales = np.ascontiguousarray(blocks[..., :_SCALE]).view(np.float32)[..., 0]
    at = _SCALE
    zeros = np.zeros_like(scales)
    if label(kind) != "FP8":
        zeros = blocks[..., at].view(np.int8).astype(np.float32)
        at += _ZERO
    data = np.ascontiguousarray(blocks[..., at:])
    if label(kind) == "INT4":
        halves = data.reshape(*blocks.shape[:2], -1, _HALF)
        numbers = np.concatenate([halves & 15, halves >> 4], axis=-1).reshape(*blocks.shape[:2], -1)
    else:
        numbers = data.view(np.int8 if label(kind) == "INT8" else ml_dtypes.float8_e4m3fn)
    return scales, zeros, numbers.astype(np.float32)
