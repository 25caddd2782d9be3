"""Random weights in blocks of any kind, and how coarse they are."""

import ml_dtypes
import numpy as np
import numpy.typing as npt

from protocol.ggml_types import GGML_BLOCKS
from tpu_worker.weights.blocks import KINDS, BlockMatrix
from tpu_worker.weights.scaled_blocks import SPANS, label, rows_of

# Where the float16s of a block are: those with which its numbers are multiplied, and minima.
_SCALES = {"Q2_K": (80,), "Q3_K": (108,), "Q6_K": (208,)}
_MINIMA = {"Q4_1": (2,), "Q5_1": (2,), "Q2_K": (82,), "Q4_K": (2,), "Q5_K": (2,)}
# The largest quant, how many inputs share a scale, and how large its multiple in a block of 256 may be.
_QUANTS = {
    "Q4_0": (15, 32, 1),
    "Q4_1": (15, 32, 1),
    "Q5_0": (31, 32, 1),
    "Q5_1": (31, 32, 1),
    "Q8_0": (255, 32, 1),
    "Q2_K": (3, 16, 15),
    "Q3_K": (7, 16, 32),
    "Q4_K": (15, 32, 63),
    "Q5_K": (31, 32, 63),
    "Q6_K": (63, 16, 127),
    "IQ4_NL": (240, 32, 1),
    "IQ4_XS": (240, 32, 32),
    "INT4_32": (15, 32, 1),
    "INT4_128": (15, 128, 1),
    "INT8_32": (255, 32, 1),
    "INT8_128": (255, 128, 1),
    "FP8_32": (15, 32, 1),  # no further apart than 32 of 448 to either side
    "FP8_128": (15, 128, 1),
    "MXFP4": (6, 32, 1),  # no further apart than 2 of 6 to either side
}

# Whose numbers stand for themselves: those of others are counted from below, which costs roundings.
WITHOUT_OFFSET = ("Q8_0", "MXFP4", "FP8_32", "FP8_128")


def inputs_of(kind: str) -> int:
    """Of a block."""
    return SPANS[kind] if kind in SPANS else GGML_BLOCKS[KINDS[kind]][0]


def random_blocks(kind: str, out: int, width: int, seed: int = 0) -> BlockMatrix:
    """Any bytes, with scales for weights of about 1; `width` is filled up to whole blocks."""
    rng = np.random.default_rng(seed)
    if kind in SPANS:
        return _random_scaled_blocks(rng, kind, out, width)
    inputs, size = GGML_BLOCKS[KINDS[kind]]
    raw = rng.integers(0, 256, (out, -(-width // inputs), size), np.uint8)
    if kind == "MXFP4":
        raw[..., 0] = rng.integers(125, 128, raw.shape[:2])
        return BlockMatrix(kind, raw.reshape(out, -1))
    largest, _, multiple = _QUANTS[kind]
    for places, sign in ((_SCALES.get(kind, (0,)), 1), (_MINIMA.get(kind, ()), 1 if multiple > 1 else -1)):
        for at in places:
            scale = 2 / multiple / (largest if sign == 1 and at in _SCALES.get(kind, (0,)) else 1)
            halves = (sign * scale * rng.uniform(0.5, 1, raw.shape[:2])).astype(np.float16)
            raw[..., at : at + 2] = halves[..., None].view(np.uint8)
    return BlockMatrix(kind, raw.reshape(out, -1))


def _random_scaled_blocks(rng: np.random.Generator, kind: str, out: int, width: int) -> BlockMatrix:
    """Any numbers, around zero points that are anywhere among them."""
    span = SPANS[kind]
    blocks = -(-width // span)
    shape, scale = (out, blocks * span), 2 / _QUANTS[kind][0] * rng.uniform(0.5, 1, (out, blocks)).astype(np.float32)
    if label(kind) == "FP8":
        numbers = rng.integers(0, 256, shape, np.uint8)
        numbers[numbers & 0x7F == 0x7F] = 1
        return BlockMatrix(kind, rows_of(kind, numbers.view(ml_dtypes.float8_e4m3fn), scale / np.float32(32), None))
    low, high = (0, 16) if label(kind) == "INT4" else (-128, 128)
    zeros = rng.integers(low, high, (out, blocks)).astype(np.int8)
    return BlockMatrix(kind, rows_of(kind, rng.integers(low, high, shape).astype(np.int8).view(np.uint8), scale, zeros))


def steps_of(kind: str, weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """[out, in]: how far apart the weights are that the blocks of this one could hold; its quants reach nearly from end to end."""
    largest, group, _ = _QUANTS[kind]
    groups = weight.astype(np.float64).reshape(len(weight), -1, group)
    steps = (groups.max(axis=2) - groups.min(axis=2)) / largest * 1.5
    return np.repeat(steps, group, axis=1)
