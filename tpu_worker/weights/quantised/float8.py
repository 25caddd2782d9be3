"""FP8 (e4m3), as DeepSeek's and Qwen's checkpoints (`fp8`) and compressed-tensors (`float-quantized`) have it.

A scale is for all weights, for those of an output, or for a block of both. Weights are multiplied with `weight_scale_inv`, too.
"""

import numpy as np
import numpy.typing as npt

from tpu_worker.weights.quantised.matrix import ScaledMatrix, spread_scales
from tpu_worker.weights.quantised.tensors import FLOATS, Module, Tensors, read_scales

WEIGHT = "weight"
BESIDE = ("weight_scale", "weight_scale_inv")


def read(tensors: Tensors, module: Module) -> ScaledMatrix:
    """See Scheme."""
    names = [f"{module.name}.{name}" for name in BESIDE]
    blocks = module.form.outputs not in (None, 1)
    name = next((name for name in names if tensors.has(name)), names[blocks])
    scales = read_scales(tensors, module, name, (*FLOATS, "F8_E8M0"))
    numbers = tensors.read(f"{module.name}.{WEIGHT}", module.shape, ("F8_E4M3",))
    return ScaledMatrix(numbers, spread_scales(scales, module.form, module.shape[0]), module.group)


def groups(tensors: Tensors, module: Module) -> npt.NDArray[np.intp] | None:  # noqa: ARG001 side by side, always
    """See Scheme."""
    return None
