"""Random numbers of tokens: each follows from (seed of the request, position, token id) alone, whoever works it out.

Threefry-2x32 with 20 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), as `jax.random` has it, bit for
bit. It is written out here for tokens from the middle of a vocabulary, and in plain operations, which a compiler joins with what
uses the numbers: none of them are ever in memory.
"""

import jax
import jax.numpy as jnp
import numpy as np

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))  # of four rounds, and of the next four
_GROUPS = 5  # of four rounds
_PARITY = np.uint32(0x1BD11BDA)
_TINY = np.finfo(np.float32).tiny


def gumbel(seeds: jax.Array, positions: jax.Array, token_ids: jax.Array) -> jax.Array:
    """Numbers [R, W] float32 from Gumbel's distribution.

    seeds [R, 2] uint32, high words first; positions [R] int32; token_ids [W] int32.
    """
    keys: jax.Array = jax.vmap(_key)(seeds, positions)
    bits = _threefry(keys[:, :1], keys[:, 1:], token_ids.astype(jnp.uint32)[None, :])
    uniform = jax.lax.bitcast_convert_type(bits >> 9 | np.float32(1).view(np.uint32), jnp.float32) - 1.0
    return -jnp.log(-jnp.log(jnp.maximum(_TINY, uniform + _TINY)))


def _key(seed: jax.Array, position: jax.Array) -> jax.Array:
    return jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(seed, impl="threefry2x32"), position))


def _threefry(high: jax.Array, low: jax.Array, counts: jax.Array) -> jax.Array:
    """32 bits for each of counts uint32, of the two words that a key makes of (0, count)."""
    keys = (high, low, high ^ low ^ _PARITY)
    x, y = jnp.broadcast_to(keys[0], jnp.broadcast_shapes(high.shape, counts.shape)), counts + keys[1]
    for group in range(_GROUPS):
        for rotation in _ROTATIONS[group % 2]:
            x = x + y
            y = (y << rotation | y >> (32 - rotation)) ^ x
        x, y = x + keys[(group + 1) % 3], y + (keys[(group + 2) % 3] + np.uint32(group + 1))
    return x ^ y
