"""The blocks of GGUF's 4- and 8-bit tensors as they are, not dequantised. The layouts are those of ggml (ggml-org/llama.cpp)."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from protocol.codec import Float32Array
from tpu_worker.weights.blocks import BLOCK, BlockMatrix

Bytes = npt.NDArray[np.uint8]


def _q4_0(blocks: Bytes) -> BlockMatrix:
    """Of 18 bytes: scale, nibbles. A weight is scale * (quant - 8)."""
    scales = _halves(blocks, 0)
    return _matrix(_nibbles(blocks[..., 2:]), scales, scales * -8)


def _q4_1(blocks: Bytes) -> BlockMatrix:
    """Of 20 bytes: scale, minimum, nibbles."""
    return _matrix(_nibbles(blocks[..., 4:]), _halves(blocks, 0), _halves(blocks, 2))


def _q8_0(blocks: Bytes) -> BlockMatrix:
    """Of 34 bytes: scale, quants."""
    return _matrix(blocks[..., 2:].view(np.int8), _halves(blocks, 0), None)


def _q4_k(blocks: Bytes) -> BlockMatrix:
    """Of 144 bytes, eight blocks: scale and minimum of all, 6-bit multiples of them for each, nibbles of two blocks at a time."""
    packed = blocks[..., 4:16]
    low, high, mixed = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    multiples = np.concatenate([low & 63, (mixed & 15) | (low >> 6 << 4)], axis=-1)
    minimum_multiples = np.concatenate([high & 63, (mixed >> 4) | (high >> 6 << 4)], axis=-1)
    scales = _halves(blocks, 0)[..., None] * multiples
    minima = -_halves(blocks, 2)[..., None] * minimum_multiples
    quants = _nibbles(blocks[..., 16:].reshape(*blocks.shape[:-1], 4, BLOCK))
    return _matrix(quants, scales, minima)


_READERS: Mapping[int, Callable[[Bytes], BlockMatrix]] = MappingProxyType(
    {
        GGMLQuantizationType.Q4_0: _q4_0,
        GGMLQuantizationType.Q4_1: _q4_1,
        GGMLQuantizationType.Q8_0: _q8_0,
        GGMLQuantizationType.Q4_K: _q4_k,
    }
)


def bits_of(ggml_type: int) -> int | None:
    """Of a weight in tensors of this type, if `blocks_of` reads them."""
    if ggml_type not in _READERS:
        return None
    return 8 if ggml_type == GGMLQuantizationType.Q8_0 else 4


def blocks_of(rows: Bytes, ggml_type: int) -> BlockMatrix:
    """A tensor of [out, bytes of a row] of a type that `bits_of` knows."""
    _, size = GGML_QUANT_SIZES[GGMLQuantizationType(ggml_type)]
    return _READERS[ggml_type](rows.reshape(len(rows), -1, size))


def _halves(blocks: Bytes, offset: int) -> Float32Array:
    """The float16 at this offset of each block."""
    return np.ascontiguousarray(blocks[..., offset : offset + 2]).view(np.float16)[..., 0].astype(np.float32)


def _nibbles(pairs: Bytes) -> Bytes:
    """All low nibbles of the last axis, then all high ones."""
    return np.concatenate([pairs & 15, pairs >> 4], axis=-1)


def _matrix(quants: npt.NDArray[Any], scales: Float32Array, minima: Float32Array | None) -> BlockMatrix:
    """From arrays whose first axis is the output features."""
    out = len(quants)
    return BlockMatrix(quants.reshape(out, -1), scales.reshape(out, -1), None if minima is None else minima.reshape(out, -1))
