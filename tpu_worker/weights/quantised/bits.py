"""Numbers of four or eight bits, several in an int32, the first in the lowest bits."""

from typing import Any

import numpy as np
import numpy.typing as npt


def unpack(packed: npt.NDArray[np.int32], bits: int, axis: int) -> npt.NDArray[np.uint8]:
    """The numbers, 0 to 2^bits - 1, that lie along one axis of a matrix: that axis grows 32 / bits times."""
    words = np.ascontiguousarray(packed.T if axis == 0 else packed)
    numbers = words.astype("<i4", copy=False).view(np.uint8)
    if bits == 4:
        numbers = np.stack([numbers & 15, numbers >> 4], axis=-1).reshape(len(words), -1)
    return numbers.T if axis == 0 else numbers


def as_kept(numbers: npt.NDArray[Any], bits: int) -> npt.NDArray[Any]:
    """Such numbers, or zero points, as `ScaledMatrix` has them: those of eight bits less 128."""
    numbers = np.ascontiguousarray(numbers)
    return numbers if bits == 4 else (numbers ^ np.uint8(128)).view(np.int8)


def zeros_as_kept(numbers: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.int8]:
    """`as_kept`, of zero points."""
    zeros: npt.NDArray[np.int8] = as_kept(numbers, bits).view(np.int8)
    return zeros
