"""What of a model lies on which chip: the dimensions of parameters have names, a rule maps some of these to the axis of the mesh.

A step runs as one program per shard (`jax.shard_map`), which sees its own part of each array and of the model's sizes, and meets
the others in explicit collectives only (`mesh.shards`). On the mesh of one chip all of that falls away.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeAlias

import jax
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from protocol.sharding import LayerSizes, check_shards
from tpu_worker.models.spec import LayerSpec, LogicalAxis, ModelSpec, ParameterSpec, Part
from tpu_worker.platforms.platform import Place
from tpu_worker.weights.scaled_rows import ScaledRows

Tree: TypeAlias = Any
HostArray: TypeAlias = npt.NDArray[Any]

AXIS = "tensor"
# The heads of a chip attend, its part of the MLP or its experts are applied, its part of the vocabulary is looked up, without the
# others. Experts that cannot be dealt out evenly are cut like an MLP, each of them.
RULES: Mapping[LogicalAxis, str] = MappingProxyType({"vocab": AXIS, "heads": AXIS, "kv_heads": AXIS, "mlp": AXIS, "experts": AXIS})

REPLICATED = PartitionSpec()
SHARDED = PartitionSpec(AXIS)  # the shards' arrays, one after the other along the first axis
COLUMNS = PartitionSpec(None, AXIS)  # … along the second


@dataclass(frozen=True)
class Layout:
    """How a model is cut among the chips of a mesh with one axis, `AXIS`."""

    mesh: Mesh
    rules: Mapping[LogicalAxis, str]

    @property
    def num_shards(self) -> int:
        """Chips along the axis."""
        size: int = self.mesh.shape[AXIS]
        return size

    @property
    def shards_here(self) -> list[int]:
        """Those whose chips this process drives: all, but where the worker spans several hosts."""
        here = jax.process_index()
        return [shard for shard, device in enumerate(self.mesh.devices.flat) if device.process_index == here]

    def check(self, spec: ModelSpec, source: str) -> None:
        """Raises ConfigError when the model cannot be cut so. `source`: where its sizes are said."""
        sizes = {
            LayerSizes(
                layer.num_heads, layer.num_kv_heads, layer.intermediate_size, layer.experts.count if layer.experts else 0
            ): None
            for layer in spec.layers
        }
        check_shards(self.num_shards, sizes, source)

    def spec_of_shard(self, spec: ModelSpec) -> ModelSpec:
        """The model as one shard sees it: its heads, its part of the MLP. The vocabulary is whole."""

        def cut(layer: LayerSpec) -> LayerSpec:
            return replace(
                layer,
                num_heads=layer.num_heads // self.num_shards,
                num_kv_heads=max(1, layer.num_kv_heads // self.num_shards),
                intermediate_size=layer.intermediate_size // self.num_shards,
            )

        return replace(spec, layers=tuple(map(cut, spec.layers)))

    def cuts(self, parameter: ParameterSpec) -> int | None:
        """The dimension along which the parameter is cut; None: every chip has all of it.

        Of a matrix [out, in], 0: each shard yields some of the features, 1: each shard yields a part of the sum of all.
        """
        if self.num_shards == 1:
            return None
        if parameter.num_experts and self._deals_out(parameter.num_experts):
            return 0
        (dimension,) = {self._dimension(part) for part in parameter.parts}
        return dimension

    def experts_of_shard(self, num_experts: int, shard: int) -> range:
        """Which of the experts of a layer a shard has: its share, or all where each of them is cut."""
        each = num_experts // self.num_shards if self._deals_out(num_experts) else num_experts
        return range(shard * each, (shard + 1) * each) if each < num_experts else range(num_experts)

    def _deals_out(self, num_experts: int) -> bool:
        return "experts" in self.rules and num_experts % self.num_shards == 0

    def _dimension(self, part: Part) -> int | None:
        """The first along which the part is cut."""
        for dimension, axis in enumerate(part.axes):
            if axis in self.rules and (axis != "experts" or self._deals_out(part.shape[dimension])):
                return dimension
        return None

    def part_of_shard(
        self, values: HostArray | ScaledRows, part: Part, layer: LayerSpec | None, shard: int
    ) -> HostArray | ScaledRows:
        """What a shard has of a tensor [part.shape]. `layer`: that of the tensor, if it is in one.

        Parts that make one parameter are cut before they are put together: q, k and v of a shard lie side by side.
        """
        dimension = self._dimension(part)
        if self.num_shards == 1 or dimension is None or self._is_of_whole_expert(part, layer):
            return values
        units = _units(part.axes[dimension], layer)
        if isinstance(values, ScaledRows):  # scales go with the outputs
            scales = _part(values.scales, 0, units, shard, self.num_shards) if dimension == 0 else values.scales
            return ScaledRows(_part(values.numbers, dimension, units, shard, self.num_shards), scales)
        return _part(values, dimension, units, shard, self.num_shards)

    def _is_of_whole_expert(self, part: Part, layer: LayerSpec | None) -> bool:
        """Whether it belongs to one of the experts that are dealt out as they are."""
        return part.expert is not None and layer is not None and layer.experts is not None and self._deals_out(layer.experts.count)

    def place(self, shards: Sequence[Tree], sharded: bool, place: Place) -> Tree:
        """On the chips: what each of `shards_here` has of a parameter, pytrees of arrays alike in shape; one, where it is not cut.
        `place` puts it on a single chip."""
        if self.num_shards == 1:
            return jax.tree.map(place, shards[0])
        if not sharded:
            return jax.tree.map(self._spread, shards[0])
        return jax.tree.map(self._join, *shards)

    def _spread(self, values: HostArray) -> jax.Array:
        """All of it on every chip. `jax.device_put` would have the hosts compare what they have."""
        return self._assemble(values.shape, REPLICATED, [values] * len(self.shards_here))

    def _join(self, *parts: HostArray) -> jax.Array:
        return self._assemble((self.num_shards * parts[0].shape[0], *parts[0].shape[1:]), SHARDED, parts)

    def _assemble(self, shape: tuple[int, ...], spec: PartitionSpec, parts: Sequence[HostArray]) -> jax.Array:
        """One array of all hosts, of what each puts on its own chips."""
        devices = [self.mesh.devices.flat[shard] for shard in self.shards_here]
        arrays = [jax.device_put(part, device) for part, device in zip(parts, devices, strict=True)]
        whole: jax.Array = jax.make_array_from_single_device_arrays(shape, NamedSharding(self.mesh, spec), arrays)
        return whole

    def size_of_shard(self, parameter: ParameterSpec) -> tuple[int, int]:
        """About what a shard has of a matrix (out, in)."""
        out, width = parameter.of_expert(0).shape if parameter.num_experts else parameter.shape
        if parameter.num_experts and self._deals_out(parameter.num_experts):
            return out, width
        match self.cuts(parameter):
            case 0:
                return -(-out // self.num_shards), width
            case 1:
                return out, -(-width // self.num_shards)
        return out, width

    def shape_of(self, array: jax.Array) -> jax.ShapeDtypeStruct:
        """Shape and type of an array that `place` made, and how it is laid out."""
        return self.shapes(array, spec_of(array))  # type: ignore[no-any-return]

    def shapes(self, tree: Tree, spec: PartitionSpec = REPLICATED) -> Tree:
        """Shapes and types of a pytree that is laid out so."""
        sharding = NamedSharding(self.mesh, spec) if self.num_shards > 1 else None
        return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding), tree)

    def program(self, function: Callable[..., Any], inputs: Tree, outputs: Tree) -> Callable[..., Any]:
        """The function, run by every shard on its parts. Inputs, a tuple, and outputs are PartitionSpecs, or trees of them."""
        if self.num_shards == 1:
            return function
        wrapped: Callable[..., Any] = jax.shard_map(function, mesh=self.mesh, in_specs=inputs, out_specs=outputs, check_vma=False)
        return wrapped


def make_layout(devices: Sequence[jax.Device]) -> Layout:
    """All of these chips along one axis."""
    return Layout(Mesh(np.array(devices), (AXIS,)), RULES)


def spec_of(array: jax.Array | jax.ShapeDtypeStruct) -> PartitionSpec:
    """How an array is laid out, or one of this shape."""
    return array.sharding.spec if isinstance(array.sharding, NamedSharding) else REPLICATED


def bytes_on_each(array: jax.Array | jax.ShapeDtypeStruct) -> int:
    """What an array takes on each of its chips."""
    return math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize


def _units(axis: LogicalAxis | None, layer: LayerSpec | None) -> int | None:
    match axis:
        case "heads":
            return layer.num_heads if layer else None
        case "kv_heads":
            return layer.num_kv_heads if layer else None
    return None


def _part(values: HostArray, dimension: int, units: int | None, shard: int, num_shards: int) -> HostArray:
    """units: of how many things that must not be cut the dimension is; None: cut anywhere, and filled up with zeros."""
    size = values.shape[dimension]
    if units is None:
        width = -(-size // num_shards)
        cut = values.take(range(min(size, shard * width), min(size, (shard + 1) * width)), dimension)
        missing = [(0, width - cut.shape[dimension] if one == dimension else 0) for one in range(values.ndim)]
        return np.pad(cut, missing)
    first, count = shard * units // num_shards, max(1, units // num_shards)  # with fewer units than shards, several have the same
    each = size // units
    part: HostArray = values.take(range(first * each, (first + count) * each), dimension)
    return part
