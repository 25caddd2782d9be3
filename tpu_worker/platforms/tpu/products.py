"""What the TPU does otherwise than XLA would anywhere."""

import jax
import jax.numpy as jnp
from jax import lax

_Pair = tuple[jax.Array, jax.Array]  # a logit, and its token


def greedy(logits: jax.Array, num_rows: jax.Array) -> jax.Array:  # noqa: ARG001 padding is searched like the rest
    """`platform.Greedy`, in one pass over the logits [R, V].

    NaN counts for more than anything, so the largest tells whether all are finite. It is this reduction's own and not looked up
    behind an argmax: of one whose largest nobody asks for, XLA keeps it in bfloat16.
    """
    start = (jnp.float32(-jnp.inf), jnp.int32(logits.shape[-1]))
    top, best = lax.reduce((logits, lax.broadcasted_iota(jnp.int32, logits.shape, 1)), start, _larger, (1,))
    return jnp.where(jnp.isfinite(top), best, -1)


def _larger(one: _Pair, other: _Pair) -> _Pair:
    (x, i), (y, j) = one, other
    is_first = (x > y) | (x != x) | ((x == y) & (i < j))  # x != x: it is NaN
    return jnp.where(is_first, x, y), jnp.where(is_first, i, j)
