"""Numbers of four or eight bits, several in an int32, as compressed-tensors has them (`pack-quantized`).

They lie along the inputs, zero points along the outputs; both are raised by half of their range, so that none is below 0.
"""

import numpy as np
import numpy.typing as npt

from protocol.errors import ModelError
from tpu_worker.weights.quantised.bits import as_kept, unpack, zeros_as_kept
from tpu_worker.weights.quantised.matrix import ScaledMatrix, spread_scales
from tpu_worker.weights.quantised.tensors import FLOATS, Module, Tensors, count_groups, read_groups, read_scales

WEIGHT = "weight_packed"
BESIDE = ("weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")


def read(tensors: Tensors, module: Module) -> ScaledMatrix:
    """See Scheme."""
    name, (out, width), bits = module.name, module.shape, module.form.bits
    if tensors.has(f"{name}.weight_shape"):
        stored = tuple(tensors.read(f"{name}.weight_shape", (2,), ("I64", "I32")).tolist())
        if stored != module.shape:
            raise ModelError(
                f"{tensors.file_of(f'{name}.weight_shape')}: tensor {name}.weight_shape is {list(stored)}, "
                f"but the model's sizes ask for {list(module.shape)}"
            )
    scales = spread_scales(read_scales(tensors, module, f"{name}.weight_scale", FLOATS), module.form, out)
    packed = tensors.read(f"{name}.{WEIGHT}", (out, -(-width * bits // 32)), ("I32",))
    numbers = as_kept(unpack(packed, bits, axis=1)[:, :width], bits)
    zeros = spread_scales(_zeros(tensors, module), module.form, out).astype(np.int8)
    return ScaledMatrix(numbers, scales, module.group, zeros, groups(tensors, module))


def _zeros(tensors: Tensors, module: Module) -> npt.NDArray[np.int8]:
    """[outputs, inputs] of each scale, as `ScaledMatrix` has them."""
    bits, name = module.form.bits, f"{module.name}.weight_zero_point"
    rows, columns = count_groups(tensors, module)
    middle = np.full((rows, columns), 0 if bits == 8 else 1 << bits - 1, np.int8)
    if module.form.symmetric and not tensors.has(name):
        return middle
    values = tensors.read(name, None, ("I32", "I8"))
    if values.dtype == np.int8:  # one byte each, and not raised: of those for all weights, and in older files
        return read_scales(tensors, module, name, ("I8",)) + middle
    packed = tensors.read(name, (-(-rows * bits // 32), columns), ("I32",))
    return zeros_as_kept(unpack(packed, bits, axis=0)[:rows], bits)


def groups(tensors: Tensors, module: Module) -> npt.NDArray[np.intp] | None:
    """See Scheme."""
    return read_groups(tensors, module, f"{module.name}.weight_g_idx")
