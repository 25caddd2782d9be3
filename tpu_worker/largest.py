"""The largest of many values."""

import jax
import jax.numpy as jnp


def largest(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`platform.Largest`. Plain reductions vectorise on the CPU, an argmax does not."""
    top = jnp.max(values, axis=-1)
    places = jnp.arange(values.shape[-1], dtype=jnp.int32)
    first = jnp.min(jnp.where(values == top[:, None], places, values.shape[-1] - 1), axis=-1)
    sound = jnp.all(values < jnp.inf, axis=-1)  # XLA's maximum may lose a NaN on the CPU
    return jnp.where(sound, top, jnp.nan), first
