"""The largest of many values, and which are equal."""

import jax
import jax.numpy as jnp
import numpy as np

_TINY = np.finfo(np.float32).tiny  # the smallest normal number


def largest(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`platform.Largest`. Plain reductions vectorise on the CPU, an argmax does not."""
    top = jnp.max(values, axis=-1)
    places = jnp.arange(values.shape[-1], dtype=jnp.int32)
    first = jnp.min(jnp.where(values == top[:, None], places, values.shape[-1] - 1), axis=-1)
    sound = jnp.all(values < jnp.inf, axis=-1)  # XLA's maximum may lose a NaN on the CPU
    return jnp.where(sound, top, jnp.nan), first


def with_one_zero(values: jax.Array) -> jax.Array:
    """float32 values of any shape, of which equals have the same bits too, for what orders by these.

    Zeros lose their sign, and what is so near to them that processors may take it for zero becomes one.
    """
    return jnp.where(jnp.abs(values) < _TINY, 0.0, values)
