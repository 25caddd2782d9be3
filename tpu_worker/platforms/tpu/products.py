"""What the TPU does otherwise than XLA would anywhere."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tpu_worker.models.layers import Activation
from tpu_worker.platforms.platform import Sampling
from tpu_worker.platforms.xla.experts import experts_in_tiles
from tpu_worker.platforms.xla.products import Weight, mask

_FEWEST_TILE_ROWS = 16  # a tile of bfloat16
_MOST_TILE_ROWS = 128  # of which each brings its expert's weights again: more rows than the matrix units take at once gain nothing


def experts(
    x: jax.Array, chosen: jax.Array, shares: jax.Array, gate_up: Weight, down: Weight, *, activation: Activation, **more: Any
) -> jax.Array:
    """`platform.Experts`. XLA's grouped product would copy all weights in each step, into another layout and out of eight bits.

    A tile has about as many rows as an expert gets of a full step.
    """
    each, tile_rows = -(-chosen.size // len(gate_up.values)), _FEWEST_TILE_ROWS
    while tile_rows < min(each, _MOST_TILE_ROWS):
        tile_rows *= 2
    return experts_in_tiles(x, chosen, shares, gate_up, down, activation=activation, tile_rows=tile_rows, **more)


_Pair = tuple[jax.Array, jax.Array]  # a logit, and its token


def greedy(logits: jax.Array, num_rows: jax.Array) -> jax.Array:  # noqa: ARG001 padding is searched like the rest
    """`platform.Greedy`, in one pass over the logits [R, V]."""
    top, best = largest(logits)
    return jnp.where(jnp.isfinite(top), best, -1)


def pick(logits: jax.Array, rows: jax.Array, bits: jax.Array) -> jax.Array:
    """`platform.Pick`, likewise."""
    return greedy(mask(logits, rows, bits), jnp.int32(len(logits))).at[rows].get(mode="fill", fill_value=-1)


def largest(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`platform.Largest`, in one pass.

    NaN counts for more than anything, so the largest tells whether all are finite. The index is made to depend on it: where nobody
    asks for the largest of a reduction, XLA keeps that in bfloat16, and what it compares too.
    """
    start = (jnp.float32(-jnp.inf), jnp.int32(values.shape[-1]))
    top, best = lax.reduce((values, lax.broadcasted_iota(jnp.int32, values.shape, 1)), start, _larger, (1,))
    is_sound = top < jnp.inf
    return jnp.where(is_sound, top, jnp.nan), jnp.where(is_sound, best, 0)


def _larger(one: _Pair, other: _Pair) -> _Pair:
    (x, i), (y, j) = one, other
    is_first = (x > y) | (x != x) | ((x == y) & (i < j))  # x != x: it is NaN
    return jnp.where(is_first, x, y), jnp.where(is_first, i, j)


# 8 MB each of the few arrays that the sampler works in. Four bits at a time: passes over these cost more than what they compute.
SAMPLING = Sampling(largest=largest, values_at_once=1 << 21, bits_at_once=2)
