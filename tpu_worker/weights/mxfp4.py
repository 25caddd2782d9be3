"""MXFP4 (OCP Microscaling Formats 1.0): blocks of 32 numbers of four bits and a power of two that all are multiplied with.

Hugging Face's gpt-oss has the numbers of a block two by two in a byte, and the exponents in a tensor of their own. GGUF files have
the first half of a block in the lower four bits, the second half in the upper ones, and the exponent before them.
"""

import numpy as np
import numpy.typing as npt

from protocol.codec import Float32Array

MXFP4 = "MXFP4"  # of `blocks.KINDS`
NO_NUMBER = 255  # of exponents
_VALUES = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
_BYTES = 17  # of a block in a GGUF file

Bytes = npt.NDArray[np.uint8]


def scales_of(blocks: str) -> str:
    """The name of the tensor with the exponents of those with these numbers."""
    return blocks.removesuffix("_blocks") + "_scales"


def rows_of_mxfp4(blocks: Bytes, scales: Bytes) -> Bytes:
    """Of blocks [out, blocks, 16] and their exponents [out, blocks]: rows as a GGUF file has them, [out, 17 * blocks]."""
    numbers = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*scales.shape, 32)
    packed = numbers[..., :16] | numbers[..., 16:] << 4
    return np.concatenate([scales[..., None], packed], axis=-1).reshape(len(scales), -1)


def mxfp4_values(rows: Bytes) -> Float32Array:
    """The weights [out, in] of such rows."""
    in_blocks = rows.reshape(len(rows), -1, _BYTES)
    numbers = np.concatenate([in_blocks[..., 1:] & 15, in_blocks[..., 1:] >> 4], axis=-1)
    table = np.concatenate([_VALUES, -_VALUES])
    values: Float32Array = np.ldexp(table[numbers], in_blocks[..., :1].astype(np.int32) - 127).astype(np.float32)
    return values.reshape(len(rows), -1)
