"""AWQ (Lin et al. 2023): four bits, eight outputs of an input in an int32, in the order that its kernels (`gemm`) have them in."""

import numpy as np
import numpy.typing as npt

from tpu_worker.weights.quantised.matrix import ScaledMatrix
from tpu_worker.weights.quantised.tensors import FLOATS, Module, Tensors, count_groups

WEIGHT = "qweight"
BESIDE = ("qzeros", "scales")

_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # of each of eight outputs, counted from the lowest bits


def read(tensors: Tensors, module: Module) -> ScaledMatrix:
    """See Scheme."""
    name, (out, width) = module.name, module.shape
    _, count = count_groups(tensors, module)
    scales = tensors.read(f"{name}.scales", (count, out), FLOATS).astype(np.float32)
    words = -(-out // len(_PLACES))
    zeros = _unpack(tensors.read(f"{name}.qzeros", (count, words), ("I32",)))[:out]
    numbers = _unpack(tensors.read(f"{name}.{WEIGHT}", (width, words), ("I32",)))[:out]
    return ScaledMatrix(numbers, np.ascontiguousarray(scales.T), module.group, zeros.view(np.int8))


def _unpack(packed: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    """[inputs, words] -> [outputs, inputs]."""
    words = np.ascontiguousarray(packed.T).view(np.uint32)
    numbers = np.empty((len(words), len(_PLACES), words.shape[1]), np.uint8)
    for output, place in enumerate(_PLACES):
        numbers[:, output] = words >> np.uint32(4 * place) & np.uint32(15)
    return numbers.reshape(-1, words.shape[1])


def groups(tensors: Tensors, module: Module) -> npt.NDArray[np.intp] | None:  # noqa: ARG001 side by side, always
    """See Scheme."""
    return None
