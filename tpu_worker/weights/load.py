"""From files to the parameters of a model on the device."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy.typing as npt

from protocol.config import EngineConfig
from tpu_worker.models.family import Parameters, Weights
from tpu_worker.models.rope import rotary_table
from tpu_worker.models.spec import ParameterSpec, Part
from tpu_worker.platforms.platform import Allocate, Products
from tpu_worker.program import Shapes, shapes_of
from tpu_worker.stacking import Layers, group_alike, group_sizes
from tpu_worker.weights.blocks import concatenate
from tpu_worker.weights.source import WeightSource

_THREADS = 2  # NumPy lets go of the interpreter lock while it converts; more only adds peak memory


def open_source(config: EngineConfig) -> WeightSource:
    """The reader for the configured format. Raises ModelError."""
    if config.model_format == "gguf":
        from tpu_worker.weights.gguf import GgufSource  # half a second of imports that the other format does not need

        return GgufSource(config.model_path)
    from tpu_worker.weights.safetensors import SafetensorsSource

    return SafetensorsSource(config.model_path)


def holds_blocks(source: WeightSource) -> bool:
    """Whether any weight could stay in the blocks that the files hold it in."""
    return any(_bits(source, parameters) for parameters in source.model.parameters())


class WeightLoader:
    """Reads, stacks, packs and uploads the parameters of a model.

    Layers with the same parameters, held alike, form a group. So the shapes of all are known when the first of each group is
    loaded: compiling need not wait for the others.
    """

    def __init__(self, source: WeightSource, products: Products, num_positions: int, report: Callable[[int, int], None]) -> None:
        """`num_positions`: of the rotary tables. `report(done, total)` counts layers, and what is outside of them as one."""
        self._source = source
        self._products = products
        self._num_positions = num_positions
        self._report = report
        self._outside, *self._layers = source.model.parameters()
        keys = []
        for parameters in self._layers:
            bits = _bits(source, parameters) if products.keeps_blocks else {}
            keys.append(tuple((name, one.kind, one.shape, bits.get(name)) for name, one in parameters.items()))
        self._where = group_alike(keys)
        self._stacks = [_Stacks(size, products.allocate) for size in group_sizes(self._where)]

    def load_first(self) -> Weights:
        """What is outside the layers, and the first layer of each group. Raises ModelError."""
        weights = self._load_own(self._outside)
        weights["ropes"] = [
            jnp.asarray(rotary_table(self._num_positions, self._source.inverse_frequencies(rope)))
            for rope in self._source.model.spec.ropes
        ]
        total = len(self._layers) + 1
        self._report(1, total)
        groups: list[Any] = []
        for index, (group, place) in enumerate(self._where):
            if place == 0:
                layer = self._load_layer(index)
                groups.append(jax.tree.map(self._stacks_of(group), layer) if self._products.stacks_layers else [layer])
                self._report(1 + len(groups), total)
        return {**weights, "layers": Layers(tuple(groups), self._where)}

    def shapes(self, first: Weights) -> Shapes:
        """The shapes and types of what `load_rest` returns for what `load_first` returned."""
        shapes = shapes_of(first)
        if self._products.stacks_layers:
            return shapes
        groups = tuple(group * size for group, size in zip(shapes["layers"].groups, group_sizes(self._where), strict=True))
        return {**shapes, "layers": Layers(groups, self._where)}

    def pending_bytes(self, first: Weights) -> int:
        """Of device memory, what `load_rest` will yet take."""
        pending = 0
        for group, size in zip(first["layers"].groups, group_sizes(self._where), strict=True):
            held = sum(array.nbytes for array in jax.tree.leaves(group))
            # Stacks are there, but the pages of a layer are taken when it comes.
            pending += held * (size - 1) // size if self._products.stacks_layers else held * (size - 1)
        return pending

    def load_rest(self, first: Weights) -> Weights:
        """All parameters, with those of `first`. Raises ModelError."""
        groups: list[Any] = list(first["layers"].groups)
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="loader") as pool:
            pending = [
                (group, pool.submit(self._load_layer, index)) for index, (group, place) in enumerate(self._where) if place > 0
            ]
            try:
                for done, (group, layer) in enumerate(pending, 2 + len(groups)):
                    loaded = layer.result()
                    if not self._products.stacks_layers:
                        groups[group] = [*groups[group], loaded]
                    self._report(done, len(self._layers) + 1)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return {**first, "layers": Layers(tuple(groups), self._where)}

    def _load_layer(self, index: int) -> Weights:
        """A layer, in arrays of its own or in the stacks of its group."""
        if self._products.stacks_layers:
            group, place = self._where[index]
            return self._load(self._layers[index], functools.partial(self._stacks[group].allocate, place))
        return self._load_own(self._layers[index])

    def _stacks_of(self, group: int) -> Callable[[npt.NDArray[Any]], jax.Array]:
        return lambda part: self._products.place(self._stacks[group].stack_of(part))

    def _load_own(self, parameters: Parameters) -> Weights:
        """In arrays of their own."""
        weights: Weights = jax.tree.map(self._products.place, self._load(parameters, self._products.allocate))
        return weights

    def _load(self, parameters: Parameters, allocate: Allocate) -> Weights:
        read: dict[Part, npt.NDArray[Any]] = {}  # a tied embedding is dequantised once
        in_blocks = _bits(self._source, parameters) if self._products.keeps_blocks else {}
        weights: Weights = {}
        for name, parameter in parameters.items():
            if name in in_blocks:
                blocks = [self._source.read_blocks(part) for part in parameter.parts]
                weights[name] = self._products.pack(concatenate(blocks), allocate, gated=parameter.kind == "gated")
                continue
            for part in parameter.parts:
                if part not in read:
                    read[part] = self._source.read(part)
            parts = [read[part] for part in parameter.parts]
            weights[name] = self._place(parameter, parts[0] if len(parts) == 1 else np.concatenate(parts), allocate)
        return weights

    def _place(self, parameter: ParameterSpec, values: npt.NDArray[Any], allocate: Allocate) -> Any:
        if parameter.kind in ("matrix", "gated"):
            return self._products.pack(values, allocate, gated=parameter.kind == "gated")
        if parameter.kind == "table":
            return values.astype(ml_dtypes.bfloat16, copy=False)
        vector = allocate(values.shape, np.float32)
        vector[...] = values
        return vector


def _bits(source: WeightSource, parameters: Parameters) -> dict[str, int]:
    """Of each matrix that the source holds in blocks of as many bits in all parts: how many."""
    bits = {}
    for name, parameter in parameters.items():
        if parameter.kind in ("matrix", "gated"):
            found = {source.stored_bits(part) for part in parameter.parts}
            if len(found) == 1 and (width := found.pop()) is not None:
                bits[name] = width
    return bits


class _Stacks:
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
