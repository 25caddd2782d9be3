"""Where the arrays of layers that are alike lie together, as `tpu_worker.stacking` has it."""

from typing import Any

import numpy as np
import numpy.typing as npt

from tpu_worker.platforms.platform import Allocate


class Stacks:
    """Room for the arrays of a group of layers, side by side. Every layer asks for the same arrays in the same order."""

    def __init__(self, num_layers: int, allocate: Allocate) -> None:
        self._num_layers = num_layers
        self._allocate = allocate
        self._stacks: list[npt.NDArray[Any]] = []
        self._used = [0] * num_layers  # of the stacks, by each layer

    def allocate(self, layer: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """The layer's part of its next stack. The group's layer 0, which makes the stacks, must be done before others begin."""
        if layer == 0:
            self._stacks.append(self._allocate((self._num_layers, *shape), dtype))
        stack = self._stacks[self._used[layer]]
        self._used[layer] += 1
        assert (stack.shape[1:], stack.dtype) == (shape, np.dtype(dtype))
        part: npt.NDArray[Any] = stack[layer]
        return part

    def stack_of(self, part: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The stack that begins with this part, which is layer 0's: what other layers write is there."""
        (stack,) = (stack for stack in self._stacks if stack.ctypes.data == part.ctypes.data)
        return stack
