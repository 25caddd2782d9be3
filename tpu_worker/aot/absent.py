"""Weights and arrays of which there are shapes alone, on chips that are not there."""

from typing import Any

import jax
import ml_dtypes
import numpy as np
import numpy.typing as npt
from jax.sharding import NamedSharding, PartitionSpec

from tpu_worker.mesh.layout import REPLICATED, SHARDED, Layout, Tree
from tpu_worker.models.family import Model
from tpu_worker.models.rope import Rope
from tpu_worker.models.spec import Part
from tpu_worker.platforms.platform import Place
from tpu_worker.weights.blocks import BlockMatrix
from tpu_worker.weights.scaled_rows import NarrowType, ScaledRows


class AbsentLayout(Layout):
    """What would be placed on the chips is shapes and types."""

    def place(self, shards: Any, sharded: bool, place: Place) -> Tree:
        """As `Layout.place`, of one shard for all."""
        spec, times = (SHARDED, self.num_shards) if sharded else (REPLICATED, 1)

        def shape(array: npt.NDArray[Any]) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(
                (times * array.shape[0], *array.shape[1:]), array.dtype, sharding=NamedSharding(self.mesh, spec)
            )

        return jax.tree.map(shape, shards[0])

    def shapes(self, tree: Tree, spec: PartitionSpec = REPLICATED) -> Tree:
        """As `Layout.shapes`; also of one chip, which is none of JAX's own."""
        sharding = NamedSharding(self.mesh, spec)
        return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding), tree)


class AbsentWeights:
    """Implements `WeightSource`: zeros that take no memory, as floats whatever the files hold."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def read(self, part: Part) -> npt.NDArray[Any]:
        """As the protocol says."""
        return np.broadcast_to(np.zeros((), ml_dtypes.bfloat16), part.shape)

    def stored_kind(self, part: Part) -> str | None:
        """None: not in blocks."""
        return None

    def read_blocks(self, part: Part) -> BlockMatrix:
        """Never called, since nothing is in blocks."""
        raise AssertionError(f"{part.name}: asked for in blocks, and stored_kind says that there are none")

    def narrow_type(self, part: Part) -> NarrowType | None:
        """None: not in eight bits."""
        return None

    def read_narrow(self, part: Part) -> ScaledRows:
        """Never called, since nothing is in eight bits."""
        raise AssertionError(f"{part.name}: asked for in eight bits, and narrow_type says that it has none")

    def inverse_frequencies(self, rope: Rope, num_positions: int = 0) -> npt.NDArray[np.float32]:
        """As the protocol says."""
        return rope.inverse_frequencies(num_positions)
