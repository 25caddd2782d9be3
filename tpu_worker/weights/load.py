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
from tpu_worker.models.layers import rotary_table
from tpu_worker.models.llama import Weights, layer_parameters, model_parameters
from tpu_worker.models.spec import ParameterSpec, Part
from tpu_worker.platforms.platform import Allocate, Products
from tpu_worker.program import Shapes, shapes_of
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


def held_in_blocks(source: WeightSource) -> frozenset[str]:
    """The parameters that the source holds in blocks of as many bits in all parts and all layers, since layers are stacked."""
    spec = source.spec
    groups = [model_parameters(spec), *(layer_parameters(spec, index) for index in range(spec.num_layers))]
    bits: dict[str, set[int | None]] = {}
    for group in groups:
        for name, parameter in group.items():
            if parameter.kind in ("matrix", "gated"):
                bits.setdefault(name, set()).update(map(source.stored_bits, parameter.parts))
    return frozenset(name for name, found in bits.items() if len(found) == 1 and None not in found)


class WeightLoader:
    """Reads, stacks, packs and uploads the parameters of a model.

    The layers are alike, so the shapes of all are known when the first is loaded: compiling need not wait for the others.
    """

    def __init__(self, source: WeightSource, products: Products, num_positions: int, report: Callable[[int, int], None]) -> None:
        """`num_positions`: of the rotary table. `report(done, total)` counts layers, and what is outside of them as one."""
        self._source = source
        self._products = products
        self._num_positions = num_positions
        self._report = report
        self._stacks = _Stacks(source.spec.num_layers, products.allocate)
        self._in_blocks = held_in_blocks(source) if products.keeps_blocks else frozenset[str]()

    def load_first(self) -> Weights:
        """What is outside the layers, and the first layer. Raises ModelError."""
        spec = self._source.spec
        outside = self._load_own(model_parameters(spec))
        outside["rope"] = jnp.asarray(rotary_table(self._num_positions, self._source.inverse_frequencies()))
        self._report(1, spec.num_layers + 1)
        layer = self._load_layer(0)
        self._report(2, spec.num_layers + 1)
        return {**outside, "layers": jax.tree.map(self._stack_of, layer) if self._products.stacks_layers else [layer]}

    def shapes(self, first: Weights) -> Shapes:
        """The shapes and types of what `load_rest` returns for what `load_first` returned."""
        shapes = shapes_of(first)
        return shapes if self._products.stacks_layers else {**shapes, "layers": shapes["layers"] * self._source.spec.num_layers}

    def load_rest(self, first: Weights) -> Weights:
        """All parameters, with those of `first`. Raises ModelError."""
        spec = self._source.spec
        layers = []
        with ThreadPoolExecutor(_THREADS) as pool:
            pending = [pool.submit(self._load_layer, index) for index in range(1, spec.num_layers)]
            try:
                for layer in pending:
                    layers.append(layer.result())
                    self._report(len(layers) + 2, spec.num_layers + 1)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return first if self._products.stacks_layers else {**first, "layers": first["layers"] + layers}

    def _load_layer(self, index: int) -> Weights:
        """A layer, in arrays of its own or in the stacks'."""
        parameters = layer_parameters(self._source.spec, index)
        if self._products.stacks_layers:
            return self._load(parameters, functools.partial(self._stacks.allocate, index))
        return self._load_own(parameters)

    def _load_own(self, parameters: dict[str, ParameterSpec]) -> Weights:
        """In arrays of their own."""
        weights: Weights = jax.tree.map(self._products.place, self._load(parameters, self._products.allocate))
        return weights

    def _stack_of(self, part: npt.NDArray[Any]) -> jax.Array:
        return self._products.place(self._stacks.stack_of(part))

    def _load(self, parameters: dict[str, ParameterSpec], allocate: Allocate) -> Weights:
        read: dict[Part, npt.NDArray[Any]] = {}  # a tied embedding is dequantised once
        weights: Weights = {}
        for name, parameter in parameters.items():
            if name in self._in_blocks:
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


class _Stacks:
    """Room for the arrays of all layers, side by side. Every layer asks for the same arrays in the same order."""

    def __init__(self, num_layers: int, allocate: Allocate) -> None:
        self._num_layers = num_layers
        self._allocate = allocate
        self._stacks: list[npt.NDArray[Any]] = []
        self._used = [0] * num_layers  # of the stacks, by each layer

    def allocate(self, layer: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """The layer's part of its next stack. Layer 0, which makes the stacks, must be done before others begin."""
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
