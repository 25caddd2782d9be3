"""Building blocks of transformers: free functions on float32 activations."""

from typing import Literal, assert_never

import jax
import jax.numpy as jnp
import numpy as np

from protocol.codec import Float32Array

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


def rotary_table(num_positions: int, frequencies: Float32Array) -> Float32Array:
    """[num_positions, 2 F]: for each position the cosines, then the sines, of its angles with frequencies [F]."""
    angles = np.arange(num_positions, dtype=np.float32)[:, None] * frequencies
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)


def rotate(x: jax.Array, turns: jax.Array) -> jax.Array:
    """Rotary position embedding (Su et al. 2021) of x [T, heads, D] with the pairs (i, i + R / 2) of the first R features.

    turns [T, 1, R] are rows of `rotary_table`.
    """
    cos, sin = jnp.split(turns, 2, axis=-1)
    half = cos.shape[-1]
    first, second, rest = jnp.split(x, (half, 2 * half), axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
