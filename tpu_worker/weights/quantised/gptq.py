"""GPTQ (Frantar et al. 2022): four or eight bits, several inputs of an output in an int32; `g_idx` says which group an input is of.

Zero points lie along the outputs. The first version of the format stores them less 1, which wraps: 0 becomes the largest.
"""

import numpy as np
import numpy.typing as npt

from protocol.errors import ModelError
from tpu_worker.weights.quantised.bits import as_kept, unpack, zeros_as_kept
from tpu_worker.weights.quantised.matrix import ScaledMatrix
from tpu_worker.weights.quantised.tensors import FLOATS, Module, Tensors, count_groups, read_groups

WEIGHT = "qweight"
BESIDE = ("qzeros", "scales", "g_idx")


def read(tensors: Tensors, module: Module) -> ScaledMatrix:
    """See Scheme."""
    name, (out, width), bits = module.name, module.shape, module.form.bits
    if width * bits % 32 or out * bits % 32:
        raise ModelError(f"{tensors.path}: {name}: {out} outputs and {width} inputs of {bits} bits are no whole words of 32 bits")
    _, count = count_groups(tensors, module)
    scales = tensors.read(f"{name}.scales", (count, out), FLOATS).astype(np.float32)
    zeros = unpack(tensors.read(f"{name}.qzeros", (count, out * bits // 32), ("I32",)), bits, axis=1)
    zeros = (zeros + np.uint8(module.form.zero_offset)) & np.uint8((1 << bits) - 1)
    numbers = unpack(tensors.read(f"{name}.{WEIGHT}", (width * bits // 32, out), ("I32",)), bits, axis=0)
    scaled = np.ascontiguousarray(scales.T)
    return ScaledMatrix(as_kept(numbers.T, bits), scaled, module.group, zeros_as_kept(zeros.T, bits), groups(tensors, module))


def groups(tensors: Tensors, module: Module) -> npt.NDArray[np.intp] | None:
    """See Scheme."""
    return read_groups(tensors, module, f"{module.name}.g_idx")
