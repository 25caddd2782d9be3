"""What a reader of weights offers to the loader."""

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from protocol.codec import Float32Array
from protocol.errors import ModelError
from tpu_worker.models.family import Model
from tpu_worker.models.rope import Rope
from tpu_worker.models.spec import Part, Within
from tpu_worker.weights.blocks import BlockMatrix
from tpu_worker.weights.scaled_rows import NarrowType, ScaledRows


class WeightSource(Protocol):
    """Tensors by their Hugging Face names. Reading is safe from several threads."""

    @property
    def model(self) -> Model:
        """The model that the files describe."""
        ...

    def read(self, part: Part) -> npt.NDArray[Any]:
        """One tensor in row-major [out, in] and any float type. Raises ModelError when it is missing, cut short or misshapen."""
        ...

    def stored_kind(self, part: Part) -> str | None:
        """One of `blocks.KINDS`, where the tensor is held in blocks, which `read_blocks` reads."""
        ...

    def read_blocks(self, part: Part) -> BlockMatrix:
        """`read`, but without dequantising, of a tensor that `stored_kind` is known of. Raises ModelError, as `read` does."""
        ...

    def narrow_type(self, part: Part) -> NarrowType | None:
        """Which eight bits the tensor is held in with a scale for each output, or one for all, which `read_narrow` reads."""
        ...

    def read_narrow(self, part: Part) -> ScaledRows:
        """`read`, but without dequantising, of a tensor that `narrow_type` is known of. Raises ModelError, as `read` does."""
        ...

    def inverse_frequencies(self, rope: Rope, num_positions: int = 0) -> Float32Array:
        """The frequencies of one of the model's rotations, [size // 2], for sequences of so many tokens. Raises ModelError."""
        ...


# Of types of floats: the integers that their bits are, and where infinity lies among them; above it are those that are no numbers.
_INFINITY: dict[str, tuple[Any, int]] = {
    "float32": (np.uint32, 0x7F800000),
    "float16": (np.uint16, 0x7C00),
    "bfloat16": (np.uint16, 0x7F80),
}
_AT_ONCE = 1 << 20


def is_finite(values: npt.NDArray[Any]) -> bool:
    """Whether all of these floats are numbers. By their bits, since NumPy converts bfloat16 number by number."""
    integers, infinity = _INFINITY[values.dtype.name]
    bits = np.ascontiguousarray(values).view(integers).reshape(-1)
    all_but_sign = integers(np.iinfo(integers).max >> 1)
    magnitudes = (bits[start : start + _AT_ONCE] & all_but_sign for start in range(0, len(bits), _AT_ONCE))
    return all(int(some.max()) < infinity for some in magnitudes)


def not_finite(path: object, name: str) -> ModelError:
    """The error of a tensor with weights that are no numbers."""
    return ModelError(
        f"{path}: damaged: tensor {name} holds weights that are no finite numbers: download it again, or convert the model again"
    )


def missing_tensor(path: object, part: Part) -> ModelError:
    """The error of a tensor that no file holds."""
    return ModelError(f"{path}: tensor {part.name} of shape {list(part.shape)} is missing")


def check_all_used(path: object, model: Model, unused: Iterable[str]) -> None:
    """Raises ModelError when tensors are stored that the model has no use for: without them its answers would be wrong."""
    names = sorted(unused)
    if names:
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        raise ModelError(
            f"{path}: a {model.spec.architecture} of {len(model.spec.layers)} layers, as the configuration has it, has no use "
            f"for these tensors: {shown}; configuration and weights must be of one model"
        )


def check_shape(path: object, part: Part | Within, found: tuple[int, ...]) -> None:
    """Raises ModelError when a tensor has another shape than the model's sizes ask for."""
    if found != part.shape:
        raise ModelError(f"{path}: tensor {part.name} has shape {list(found)}, but the model's sizes ask for {list(part.shape)}")
