"""What a way to store weights needs of a checkpoint's files, and what it offers to their reader."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from protocol.errors import ModelError
from protocol.quantization_config import FIELD, WeightFormat
from tpu_worker.weights.quantised.matrix import ScaledMatrix

FLOATS = ("F32", "F16", "BF16")  # types of safetensors files
_OF_ONE_MODEL = "config.json and weights must be of one model"


class Tensors(Protocol):
    """The tensors of a checkpoint, by the names that the engine has for them."""

    @property
    def path(self) -> object:
        """For errors."""
        ...

    def has(self, name: str) -> bool:
        """Whether some file holds it."""
        ...

    def file_of(self, name: str) -> object:
        """For errors that are about a tensor that is there."""
        ...

    def read(self, name: str, shape: tuple[int, ...] | None, types: Sequence[str]) -> npt.NDArray[Any]:
        """All of it. Raises ModelError when it is missing, or of another shape (None: any) or type than these of safetensors."""
        ...


@dataclass(frozen=True, slots=True)
class Module:
    """One whose weight is quantised."""

    name: str
    shape: tuple[int, int]  # (out, in) of its weight
    form: WeightFormat

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return self.form.inputs or self.shape[1]


class Scheme(Protocol):
    """One way to store a weight: a module of this package."""

    @property
    def WEIGHT(self) -> str:  # noqa: N802 a constant
        """The tensor that holds the numbers, within a module."""
        ...

    @property
    def BESIDE(self) -> Sequence[str]:  # noqa: N802 a constant
        """All others that may belong to it."""
        ...

    def read(self, tensors: Tensors, module: Module) -> ScaledMatrix:
        """The weight of a module. Raises ModelError when tensors are missing, or contradict the config."""
        ...

    def groups(self, tensors: Tensors, module: Module) -> npt.NDArray[np.intp] | None:
        """Which group each input is of; None: those that share a scale lie side by side. Raises ModelError, as `read` does."""
        ...


def count_groups(tensors: Tensors, module: Module) -> tuple[int, int]:
    """How many scales there are along the outputs and along the inputs. Raises ModelError when groups do not come out even.

    Blocks of several outputs may: the last ones are smaller.
    """
    (out, width), form = module.shape, module.form
    if form.outputs == 1 and width % module.group:
        raise ModelError(
            f"{tensors.path}: {module.name}: its {width} inputs are no whole groups of {module.group}, as {FIELD} has them: "
            f"{_OF_ONE_MODEL}"
        )
    return -(-out // (form.outputs or out)), -(-width // module.group)


def read_scales(tensors: Tensors, module: Module, name: str, types: Sequence[str]) -> npt.NDArray[Any]:
    """Scales or zero points of compressed-tensors and FP8, as they are stored: [outputs, inputs], counted as `count_groups` does.

    Where there is one for all inputs, the second dimension may be missing; where there is one for all, both.
    """
    rows, columns = count_groups(tensors, module)
    values = tensors.read(name, None, types)
    shapes: list[tuple[int, ...]] = [(rows, columns)]
    if columns == 1:
        shapes.append((rows,))
    if module.form.outputs is None:
        shapes += [(1,), ()]
    if values.shape not in shapes:
        raise ModelError(
            f"{tensors.file_of(name)}: tensor {name} has shape {list(values.shape)}, but {FIELD} and the model's sizes ask for "
            f"{list(shapes[0])}: {_OF_ONE_MODEL}"
        )
    return values.reshape(rows, columns)


def read_groups(tensors: Tensors, module: Module, name: str) -> npt.NDArray[np.intp] | None:
    """Which group each input is of, if a tensor says so and they do not lie side by side."""
    if not tensors.has(name):
        if module.form.reordered and module.group < module.shape[1]:
            raise ModelError(f"{tensors.path}: tensor {name} is missing: {FIELD} says that inputs are in an order of their own")
        return None
    width = module.shape[1]
    groups = tensors.read(name, (width,), ("I32", "I64")).astype(np.intp)
    _, count = count_groups(tensors, module)
    if (groups == -1).all() or (groups == np.arange(width) // module.group).all():
        return None
    if (wrong := groups[(groups < 0) | (groups >= count)]).size:
        raise ModelError(
            f"{tensors.file_of(name)}: tensor {name} names group {int(wrong[0])}, of which there are {count}: {_OF_ONE_MODEL}"
        )
    return groups
