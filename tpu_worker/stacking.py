"""How the layers of a model keep their arrays: each its own (a list of pytrees), or all of a kind in one (a pytree of [L, ...]).

Stacked arrays are few, and to pass an array to a program costs the host about a microsecond. But only kernels that find their layer
by themselves can use them: XLA would copy each layer out of the stack.
"""

from dataclasses import dataclass
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


def take(layers: Tree, index: int) -> Tree:
    """One layer of all: of a list its item, of stacked arrays a pytree of `Layer`."""
    if isinstance(layers, list):
        return layers[index]
    return jax.tree.map(lambda stack: Layer(stack, jnp.int32(index)), layers)


def put(layers: Tree, index: int, layer: Tree) -> Tree:
    """All layers, with this one in place of what `take` returned."""
    if isinstance(layers, list):
        return [*layers[:index], layer, *layers[index + 1 :]]
    return jax.tree.map(lambda part: part.stack, layer, is_leaf=lambda part: isinstance(part, Layer))


def value(part: Operand) -> jax.Array:
    """The array itself, for what is not a kernel."""
    return part.stack[part.index] if isinstance(part, Layer) else part


def find(part: Operand) -> tuple[jax.Array, jax.Array]:
    """(stack [L, ...], index [1] int32), for a kernel."""
    if isinstance(part, Layer):
        return part.stack, part.index[None]
    return part[None], jnp.zeros(1, jnp.int32)
