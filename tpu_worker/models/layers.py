"""Building blocks of transformers: free functions on float32 activations."""

import jax
import jax.numpy as jnp


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """x [T, D] divided by its root mean square, times weight [D] (Zhang and Sennrich 2019)."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def rotary_tables(positions: jax.Array, inverse_frequencies: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines, each [T, 1, head_dim // 2] float32, of positions [T] int32."""
    angles = positions[:, None, None].astype(jnp.float32) * inverse_frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotary position embedding of x [T, heads, head_dim] (Su et al. 2021), with the pairs (i, i + head_dim // 2)."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
