"""A platform as one shard of several uses it: its results are whole where those of its products are parts of a sum."""

import functools
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp

from tpu_worker.mesh.layout import AXIS
from tpu_worker.mesh.vocabulary import Vocabulary
from tpu_worker.models.layers import Activation
from tpu_worker.platforms.platform import Packed, Platform, Products
from tpu_worker.stacking import Operand, value


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class PartialWeight:
    """A packed weight with some of the inputs, of which the other shards have the others."""

    weight: Packed


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class SomeExperts:
    """The packed weights of some experts, of which each shard has as many, in order."""

    weight: Packed
    count: int = field(metadata={"static": True})


def shard_platform(platform: Platform, vocabulary: Vocabulary) -> Platform:
    """The same kernels, within a program of several shards. A model's forward pass sees no difference.

    Logits are those of a shard's part of the vocabulary.
    """
    products = platform.products
    sharded = replace(
        products,
        linear=functools.partial(_linear, products),
        experts=functools.partial(_experts, products),
        lookup=functools.partial(_lookup, products),
        greedy=functools.partial(_greedy, products, vocabulary),
        pick=functools.partial(_pick, products, vocabulary),
        mask=functools.partial(_mask, products, vocabulary),
        mean_of_shards=lambda x: jax.lax.pmean(x, AXIS),
    )
    return replace(platform, products=sharded)


def _linear(
    products: Products,
    x: jax.Array,
    weight: Packed,
    *,
    activation: Activation | None = None,
    num_rows: jax.Array | None = None,
    norm: Operand | None = None,
    eps: float = 0.0,
    residual: jax.Array | None = None,
) -> jax.Array:
    """`platform.Linear`. The sum over the shards is float32, as the residual is."""
    if not isinstance(weight, PartialWeight):
        return products.linear(x, weight, activation=activation, num_rows=num_rows, norm=norm, eps=eps, residual=residual)
    if norm is not None or activation is not None:
        raise ValueError("a norm over all inputs and an activation of the sum need more than a shard's part of them")
    total: jax.Array = jax.lax.psum(products.linear(x, weight.weight, num_rows=num_rows), AXIS)
    return total if residual is None else total + residual


def _experts(
    products: Products,
    x: jax.Array,
    chosen: jax.Array,
    shares: jax.Array,
    gate_up: Packed,
    down: Packed,
    *,
    activation: Activation,
    num_rows: jax.Array,
    norm: Operand | None = None,
    eps: float = 0.0,
    gate_up_bias: Operand | None = None,
    down_bias: Operand | None = None,
    residual: jax.Array | None = None,
) -> jax.Array:
    """`platform.Experts`: each shard has some of the experts, or a part of each. One sum over the shards, float32."""
    shard = jax.lax.axis_index(AXIS)
    if isinstance(down, SomeExperts):
        chosen, gate_up = chosen - shard * down.count, gate_up.weight
    elif down_bias is not None:  # which is added once
        down_bias = jnp.where(shard == 0, value(down_bias), 0.0)
    made = products.experts(
        x,
        chosen,
        shares,
        gate_up,
        down.weight,
        activation=activation,
        num_rows=num_rows,
        norm=norm,
        eps=eps,
        gate_up_bias=gate_up_bias,
        down_bias=down_bias,
    )
    total: jax.Array = jax.lax.psum(made, AXIS)
    return total if residual is None else total + residual


def _lookup(products: Products, table: Packed, token_ids: jax.Array) -> jax.Array:
    """`platform.Lookup`: each shard has some of the rows."""
    here = token_ids - jax.lax.axis_index(AXIS) * table.shape[0]
    mine = (here >= 0) & (here < table.shape[0])
    rows = products.lookup(table, jnp.where(mine, here, 0))
    found: jax.Array = jax.lax.psum(jnp.where(mine[:, None], rows, 0.0), AXIS)
    return found


def _greedy(products: Products, vocabulary: Vocabulary, logits: jax.Array, num_rows: jax.Array) -> jax.Array:  # noqa: ARG001
    """`platform.Greedy`."""
    top, token_ids = vocabulary.largest(*products.sampling.largest(logits))
    return jnp.where(jnp.isfinite(top), token_ids, -1)


def _pick(products: Products, vocabulary: Vocabulary, logits: jax.Array, rows: jax.Array, bits: jax.Array) -> jax.Array:
    """`platform.Pick`."""
    token_ids = _greedy(products, vocabulary, _mask(products, vocabulary, logits, rows, bits), jnp.int32(len(logits)))
    return token_ids.at[rows].get(mode="fill", fill_value=-1)


def _mask(products: Products, vocabulary: Vocabulary, logits: jax.Array, rows: jax.Array, bits: jax.Array) -> jax.Array:
    """`platform.Mask`, with bits of all tokens."""
    return products.mask(logits, rows, vocabulary.words(bits))
