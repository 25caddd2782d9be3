"""Building blocks of transformers: free functions on float32 activations."""

from typing import Literal, assert_never

import jax
import jax.numpy as jnp

Activation = Literal["silu", "gelu_tanh"]


def activate(activation: Activation, x: jax.Array) -> jax.Array:
    """x / (1 + e^-x), or the Gaussian error linear unit with its approximation by a hyperbolic tangent."""
    match activation:
        case "silu":
            return jax.nn.silu(x)
        case "gelu_tanh":
            return jax.nn.gelu(x, approximate=True)
        case _:
            assert_never(activation)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """x [T, D] divided by its root mean square, times weight [D] (Zhang and Sennrich 2019)."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * weight
