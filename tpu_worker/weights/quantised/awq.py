"""AWQ (Lin et al. 2023): four bits, eight outputs of an input in an int32, in the order that its kernels (`gemm`) have them in."""

import numpy as np
import numpy.typing as npt

from tpu_worker.weights.quantised.bits import as_kept, unpack, zeros_as_kept
from tpu_worker.weights.quantised.matrix import ScaledMatrix
from tpu_worker.weights.quantised.tensors import FLOATS, Module, Tensors, count_groups

WEIGHT = "qweight"
BESIDE = ("qzeros", "scales")

_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # of each of eight outputs, counted from the lowest bits


def read(tensors: Tensors, module: Module) -> ScaledMatrix:
    """See Scheme."""
    name, (out, width), bits = module.name, module.shape, module.form.bits
    _, count = count_groups(tensors, module)
    scales = tensors.read(f"{name}.scales", (count, out), FLOATS).astype(np.float32)
    words = -(-out * bits // 32)
    zeros = _in_order(tensors.read(f"{name}.qzeros", (count, words), ("I32",)), bits)[:, :out]
    numbers = _in_order(tensors.read(f"{name}.{WEIGHT}", (width, words), ("I32",)), bits)[:, :out]
    return ScaledMatrix(as_kept(numbers.T, bits), np.ascontiguousarray(scales.T), module.group, zeros_as_kept(zeros.T, bits))


def _in_order(packed: npt.NDArray[np.int32], bits: int) -> npt.NDArray[np.uint8]:
    mixed = unpack(packed, bits, axis=1)
    return mixed.reshape(len(mixed), -1, len(_PLACES))[..., _PLACES].reshape(mixed.shape)


def groups(tensors: Tensors, module: Module) -> npt.NDArray[np.intp] | None:  # noqa: ARG001 side by side, always
    """See Scheme."""
    return None
