"""How the layers of a model keep their arrays: each its own, or those of layers that are alike in one of [L, ...].

Stacked arrays are few, and to pass an array to a program costs the host about a microsecond. But only kernels that find their layer
by themselves can use them: XLA would copy each layer out of the stack.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

Tree: TypeAlias = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a stacked array."""

    stack: jax.Array  # [L, ...]
    index: jax.Array  # [] int32; not static, so that what is traced for one layer serves all


Operand: TypeAlias = jax.Array | Layer  # of a kernel: an array of its own, or one layer of a stack


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class Layers:
    """The arrays of all layers. Those of layers that are alike form a group: a pytree of [L, ...], or a list of L pytrees."""

    groups: tuple[Tree, ...]
    where: tuple[tuple[int, int], ...] = field(metadata={"static": True})  # of each layer: its group, and its place in there

    def take(self, index: int) -> Tree:
        """One layer: out of a list its item, out of stacked arrays a pytree of `Layer`."""
        group, place = self.where[index]
        tree = self.groups[group]
        return tree[place] if isinstance(tree, list) else take(tree, place)

    def put(self, index: int, layer: Tree) -> "Layers":
        """All layers, with this one in place of what `take` returned."""
        group, place = self.where[index]
        tree = self.groups[group]
        if isinstance(tree, list):
            tree = [*tree[:place], layer, *tree[place + 1 :]]
        else:
            tree = jax.tree.map(lambda part: part.stack, layer, is_leaf=lambda part: isinstance(part, Layer))
        return Layers((*self.groups[:group], tree, *self.groups[group + 1 :]), self.where)


def take(stacks: Tree, index: int) -> Tree:
    """One layer of stacked arrays: a pytree of `Layer`."""
    return jax.tree.map(lambda stack: Layer(stack, jnp.int32(index)), stacks)


def group_alike(keys: Sequence[Hashable]) -> tuple[tuple[int, int], ...]:
    """`Layers.where` for layers that are alike where their keys are equal; groups are numbered as they come."""
    groups: dict[Hashable, int] = {}
    sizes: list[int] = []
    where = []
    for key in keys:
        group = groups.setdefault(key, len(groups))
        if group == len(sizes):
            sizes.append(0)
        where.append((group, sizes[group]))
        sizes[group] += 1
    return tuple(where)


def group_sizes(where: Sequence[tuple[int, int]]) -> list[int]:
    """How many layers there are in each group."""
    return [count for _, count in sorted(Counter(group for group, _ in where).items())]


def value(part: Operand) -> jax.Array:
    """The array itself, for what is not a kernel."""
    return part.stack[part.index] if isinstance(part, Layer) else part


def find(part: Operand) -> tuple[jax.Array, jax.Array]:
    """(stack [L, ...], index [1] int32), for a kernel."""
    if isinstance(part, Layer):
        return part.stack, part.index[None]
    return part[None], jnp.zeros(1, jnp.int32)
