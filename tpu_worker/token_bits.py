"""Sets of tokens as bits, on the device."""

import jax
import jax.numpy as jnp

_MOST_ROWS = 64  # at once: of more, TPUs would turn everything round, the logits that are masked with it too


def allowed_tokens(bits: jax.Array, num_tokens: int) -> jax.Array:
    """Sets [M, W] uint32, where bit b of word w is token 32 w + b, as booleans [M, num_tokens].

    Bits that lie side by side in a word would have to be spread over neighbouring lanes, which costs accelerators several times the
    search itself. So squares of 32 x 32 bits are transposed first (Warren, Hacker's Delight, 7-3): then bit b of word w is token
    b W' + w, W' = W rounded up to whole squares, and a word's bits go to places that are far apart.
    """
    num_rows = len(bits)
    if num_rows > _MOST_ROWS:
        pieces = [allowed_tokens(bits[first : first + _MOST_ROWS], num_tokens) for first in range(0, num_rows, _MOST_ROWS)]
        return jnp.concatenate(pieces)
    words = jnp.pad(bits, ((0, 0), (0, -bits.shape[1] % 32)))
    square = words.reshape(num_rows, 32, -1)  # one in each column: bit i of word b is token b W' + 32 column + i
    distance, keep = 16, 0x0000FFFF
    while distance:
        pairs = square.reshape(num_rows, 16 // distance, 2, distance, -1)
        upper, lower = pairs[:, :, 0], pairs[:, :, 1]
        swapped = ((upper >> distance) ^ lower) & jnp.uint32(keep)
        square = jnp.stack([upper ^ (swapped << distance), lower ^ swapped], axis=2).reshape(square.shape)
        distance >>= 1
        keep ^= keep << distance & 0xFFFFFFFF
    strided = square.swapaxes(1, 2).reshape(num_rows, 1, -1)
    flags = (strided >> jnp.arange(32, dtype=jnp.uint32)[:, None] & 1).reshape(num_rows, -1)
    return flags[:, :num_tokens].astype(bool)
