"""Building blocks of transformers: free functions on float32 activations."""

from typing import Literal, assert_never

import jax
import jax.numpy as jnp
import numpy as np

Activation = Literal["silu", "gelu_tanh", "clamped_swiglu"]

SWIGLU_LIMIT, SWIGLU_SLOPE = 7.0, 1.702  # of "clamped_swiglu": where it is clamped, and how steep its logistic function is


def gated(activation: Activation, gate: jax.Array, up: jax.Array) -> jax.Array:
    """activation(gate) * up: with x / (1 + e^-x), or the Gaussian error linear unit, approximated by a hyperbolic tangent.

    "clamped_swiglu" is gpt-oss's (OpenAI 2025): both are clamped, and 1 is added to up.
    """
    match activation:
        case "silu":
            return jax.nn.silu(gate) * up
        case "gelu_tanh":
            return jax.nn.gelu(gate, approximate=True) * up
        case "clamped_swiglu":
            gate, up = jnp.minimum(gate, SWIGLU_LIMIT), jnp.clip(up, -SWIGLU_LIMIT, SWIGLU_LIMIT)
            return gate * jax.nn.sigmoid(gate * SWIGLU_SLOPE) * (up + 1.0)
        case _:
            assert_never(activation)


def sum_last(x: jax.Array) -> jax.Array:
    """The sum of x over its last axis. On the CPU it has the same bits whatever the other axes are: see `_sum_in_order`."""
    summed: jax.Array = jax.lax.platform_dependent(x, cpu=_sum_in_order, default=lambda x: jnp.sum(x, axis=-1))
    return summed


def _sum_in_order(x: jax.Array) -> jax.Array:
    """XLA's CPU lets the compiler reorder a plain sum as it likes, which it does differently for few rows and for many. It leaves
    alone what it does not take for a sum."""

    def add(total: jax.Array, term: jax.Array) -> jax.Array:
        return jnp.where(total == total, total + term, total)

    total: jax.Array = jax.lax.reduce(x, np.zeros((), x.dtype), add, (x.ndim - 1,))
    return total


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """x [T, D] divided by its root mean square, times weight [D] (Zhang and Sennrich 2019)."""
    return x * jax.lax.rsqrt(sum_last(x * x)[..., None] / x.shape[-1] + eps) * weight


def lookup(table: jax.Array, token_ids: jax.Array) -> jax.Array:
    """Rows of table [V, D] for token_ids [T] -> [T, D] float32."""
    return table[token_ids].astype(jnp.float32)
