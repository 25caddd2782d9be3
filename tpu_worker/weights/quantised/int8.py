"""Numbers of a byte each, as compressed-tensors has them (`int-quantized`).

A scale, and perhaps a zero point, is for all weights, for those of an output, for a group of its inputs, or for a block.
"""

import numpy as np
import numpy.typing as npt

from tpu_worker.weights.quantised.matrix import ScaledMatrix, spread_scales
from tpu_worker.weights.quantised.tensors import FLOATS, Module, Tensors, read_groups, read_scales

WEIGHT = "weight"
BESIDE = ("weight_scale", "weight_zero_point", "weight_g_idx")


def read(tensors: Tensors, module: Module) -> ScaledMatrix:
    """See Scheme. Zero points of weights that need none may be there, and are 0."""
    name, out = module.name, module.shape[0]
    scales = spread_scales(read_scales(tensors, module, f"{name}.weight_scale", FLOATS), module.form, out)
    zeros = None
    if not module.form.symmetric or tensors.has(f"{name}.weight_zero_point"):
        stored = read_scales(tensors, module, f"{name}.weight_zero_point", ("I8",))
        zeros = spread_scales(stored, module.form, out).astype(np.int8)
    numbers = tensors.read(f"{name}.{WEIGHT}", module.shape, ("I8",))
    return ScaledMatrix(numbers, scales, module.group, zeros, groups(tensors, module))


def groups(tensors: Tensors, module: Module) -> npt.NDArray[np.intp] | None:
    """See Scheme."""
    return read_groups(tensors, module, f"{module.name}.weight_g_idx")
