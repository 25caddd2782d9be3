"""From files to the parameters of a model on the device."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from protocol.codec import Float32Array
from protocol.config import EngineConfig
from tpu_worker.mesh.layout import Layout, bytes_on_each
from tpu_worker.mesh.shards import PartialWeight, SomeExperts
from tpu_worker.models.family import Parameters, Weights
from tpu_worker.models.rope import Rope, rotary_table
from tpu_worker.models.spec import LayerSpec, ParameterSpec, Part
from tpu_worker.platforms.platform import Allocate, HostArray, Products
from tpu_worker.program import Shapes
from tpu_worker.stacking import Layers, group_alike, group_sizes
from tpu_worker.weights.blocks import BlockMatrix, concatenate
from tpu_worker.weights.scaled_rows import NarrowType, ScaledRows, concatenate_rows, quantise_rows
from tpu_worker.weights.source import WeightSource
from tpu_worker.weights.stacks import Stacks

_THREADS = 2  # NumPy lets go of the interpreter lock while it converts; more only adds peak memory


def open_source(config: EngineConfig) -> WeightSource:
    """The reader for the configured format. Raises ModelError."""
    if config.load_format == "dummy":
        from tpu_worker.weights.dummy import DummySource

        return DummySource(config.model_path, config.seed or 0)
    if config.model_format == "gguf":
        from tpu_worker.weights.gguf import GgufSource  # half a second of imports that the other format does not need

        return GgufSource(config.model_path)
    from tpu_worker.weights.safetensors import SafetensorsSource

    return SafetensorsSource(config.model_path)


def kinds_held(source: WeightSource) -> frozenset[str]:
    """Of all blocks in which the files hold matrices."""
    parts = {
        part
        for parameters in source.model.parameters()
        for one in parameters.values()
        if one.kind in ("matrix", "gated")
        for part in one.parts
    }
    return frozenset(kind for part in parts if (kind := source.stored_kind(part)) is not None)


class WeightLoader:
    """Reads, stacks, packs and uploads the parameters of a model.

    Layers with the same parameters, held alike, form a group. So the shapes of all are known when the first of each group is
    loaded: compiling need not wait for the others.
    """

    def __init__(
        self, source: WeightSource, products: Products, layout: Layout, num_positions: int, report: Callable[[int, int], None]
    ) -> None:
        """`num_positions`: of the rotary tables. `report(done, total)` counts layers, and what is outside of them as one."""
        self._source = source
        self._products = products
        self._layout = layout
        self._num_positions = num_positions
        self._report = report
        self._outside, *self._layers = source.model.parameters()
        if products.as_matrix is not None and source.model.spec.tied_embeddings:
            del self._outside["head"]  # the product takes the table
        keys = []
        for parameters in self._layers:
            kinds = _kinds_kept(source, parameters, products)
            narrow = {name: _narrow_type(source, one, products) for name, one in parameters.items()}
            keys.append(tuple((name, one.kind, one.shape, kinds.get(name, narrow[name])) for name, one in parameters.items()))
        self._where = group_alike(keys)
        self._stacks = [Stacks(size, products.allocate) for size in group_sizes(self._where)]

    def load_first(self) -> Weights:
        """What is outside the layers, and the first layer of each group. Raises ModelError."""
        weights = self._load_own(self._outside, None)
        ropes = [self._vector(self._rotary_table(rope), self._products.allocate) for rope in self._source.model.spec.ropes]
        weights["ropes"] = [self._layout.place([rope], False, self._products.place) for rope in ropes]
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
        shapes = jax.tree.map(self._layout.shape_of, first)
        if self._products.stacks_layers:
            return shapes
        groups = tuple(group * size for group, size in zip(shapes["layers"].groups, group_sizes(self._where), strict=True))
        return {**shapes, "layers": Layers(groups, self._where)}

    def pending_bytes(self, first: Weights) -> int:
        """What `load_rest` will yet take of each device's memory."""
        pending = 0
        for group, size in zip(first["layers"].groups, group_sizes(self._where), strict=True):
            held = sum(map(bytes_on_each, jax.tree.leaves(group)))
            # Stacks are there, but the pages of a layer are taken when it comes.
            pending += held * (size - 1) // size if self._products.stacks_layers else held * (size - 1)
        return pending

    def matrix_sizes(self) -> set[tuple[int, int]]:
        """(out, in) of every matrix that a shard multiplies with."""
        parameters = [parameter for group in (self._outside, *self._layers) for parameter in group.values()]
        return {self._layout.size_of_shard(one) for one in parameters if one.kind != "vector"}  # the head is as large as the table

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
        layer = self._source.model.spec.layers[index]
        if not self._products.stacks_layers:
            return self._load_own(self._layers[index], layer)
        group, place = self._where[index]
        loaded = self._load(self._layers[index], layer, functools.partial(self._stacks[group].allocate, place))
        return {name: shards[0] for name, shards in loaded.items()}

    def _stacks_of(self, group: int) -> Callable[[HostArray], jax.Array]:
        return lambda part: self._products.place(self._stacks[group].stack_of(part))

    def _load_own(self, parameters: Parameters, layer: LayerSpec | None) -> Weights:
        """In arrays of their own."""
        loaded = self._load(parameters, layer, self._products.allocate)
        cut = {name: self._layout.cuts(parameter) is not None for name, parameter in parameters.items()}
        return {name: self._layout.place(shards, cut[name], self._products.place) for name, shards in loaded.items()}

    def _load(self, parameters: Parameters, layer: LayerSpec | None, allocate: Allocate) -> dict[str, list[Any]]:
        """Of each parameter what the shards of this host have of it; one entry, where every shard has all of it."""
        read: dict[Part, HostArray | ScaledRows] = {}  # a tied embedding is dequantised once
        in_blocks = _kinds_kept(self._source, parameters, self._products)
        weights: dict[str, list[Any]] = {}
        for name, parameter in parameters.items():
            dimension = self._layout.cuts(parameter)
            if parameter.num_experts:
                weights[name] = self._load_experts(parameter, layer, allocate, name in in_blocks)
                continue
            if name in in_blocks:
                blocks = concatenate([self._source.read_blocks(part) for part in parameter.parts])
                weights[name] = [self._products.pack(blocks, allocate, gated=parameter.kind == "gated")]
                continue
            narrow = _narrow_type(self._source, parameter, self._products)
            for part in parameter.parts:
                if part not in read:
                    read[part] = self._read(part, narrow)
            weights[name] = []
            for shard in [0] if dimension is None else self._layout.shards_here:
                parts = [self._layout.part_of_shard(read[part], part, layer, shard) for part in parameter.parts]
                packed = self._pack(parameter, _concatenate(parts), allocate)
                partial = dimension == 1 and parameter.kind == "matrix"
                weights[name].append(PartialWeight(packed) if partial else packed)
        return weights

    def _load_experts(self, parameter: ParameterSpec, layer: LayerSpec | None, allocate: Allocate, in_blocks: bool) -> list[Any]:
        """Of the matrices of experts what the shards of this host have of them. They are read and packed one by one."""
        dimension = self._layout.cuts(parameter)

        narrow = _narrow_type(self._source, parameter, self._products)

        def read(shard: int, expert: int) -> HostArray | ScaledRows | BlockMatrix:
            parts = parameter.of_expert(expert).parts
            if in_blocks:
                (blocks,) = concatenate([self._source.read_blocks(part) for part in parts])
                return blocks
            values = [self._layout.part_of_shard(self._read(part, narrow), part, layer, shard) for part in parts]
            whole: HostArray | ScaledRows = _concatenate(values)
            return whole

        shards: list[Any] = []
        for shard in [0] if dimension is None else self._layout.shards_here:
            experts = self._layout.experts_of_shard(parameter.num_experts, shard)
            read_one = functools.partial(lambda shard, first, index: read(shard, first + index), shard, experts.start)
            packed = self._products.pack_experts(read_one, len(experts), allocate, gated=parameter.kind == "gated")
            if len(experts) < parameter.num_experts:
                shards.append(SomeExperts(packed, len(experts)))
            else:
                shards.append(PartialWeight(packed) if dimension == 1 else packed)
        return shards

    def _read(self, part: Part, narrow: NarrowType | None) -> HostArray | ScaledRows:
        """Rounded before it is cut, so that weights are the same on however many chips."""
        if narrow is None:
            return self._source.read(part)
        if self._source.narrow_type(part) == narrow:
            return self._source.read_narrow(part)
        return quantise_rows(self._source.read(part), narrow)

    def _pack(self, parameter: ParameterSpec, values: HostArray | ScaledRows, allocate: Allocate) -> Any:
        if parameter.kind in ("matrix", "gated") or isinstance(values, ScaledRows):
            return self._products.pack(values, allocate, gated=parameter.kind == "gated")
        if parameter.kind == "table":
            return values.astype(jnp.dtype(self._products.dtype), copy=False)
        return self._vector(values.astype(np.float32) + np.float32(parameter.offset) if parameter.offset else values, allocate)

    def _rotary_table(self, rope: Rope) -> Float32Array:
        frequencies = self._source.inverse_frequencies(rope, self._num_positions)
        table = rotary_table(self._num_positions, frequencies) * np.float32(rope.amplitude)
        return np.pad(table, ((0, 0), (0, -table.shape[1] % self._products.lanes)))

    def _vector(self, values: HostArray, allocate: Allocate) -> HostArray:
        vector = allocate(values.shape, np.float32)
        vector[...] = values
        return vector


def _concatenate(parts: list[Any]) -> Any:
    """Arrays, or `ScaledRows`."""
    if len(parts) == 1:
        return parts[0]
    return concatenate_rows(parts) if isinstance(parts[0], ScaledRows) else np.concatenate(parts)


def _narrow_type(source: WeightSource, parameter: ParameterSpec, products: Products) -> NarrowType | None:
    """What a parameter of eight bits is kept as, with a scale for each output."""
    if parameter.kind == "vector":
        return None
    (kind, *others) = {source.narrow_type(part) for part in parameter.parts}
    return kind if not others and kind in products.keeps_scaled else products.narrows_to


def _kinds_kept(source: WeightSource, parameters: Parameters, products: Products) -> dict[str, tuple[str, ...]]:
    """Of each matrix that stays in the blocks that the source holds it in: the kind of each part."""
    kept = {}
    for name, parameter in parameters.items():
        if parameter.kind in ("matrix", "gated"):
            kinds = tuple(source.stored_kind(part) for part in parameter.parts)
            mixed_experts = parameter.num_experts and len(set(kinds)) > 1  # of which there are no products
            if all(kind in products.keeps_blocks for kind in kinds) and not mixed_experts:
                kept[name] = tuple(kind for kind in kinds if kind is not None)
    return kept
