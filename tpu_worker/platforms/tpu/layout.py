"""How the cache lies in the chip's memory."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

LANES = 128  # of a vector register: what a row in memory is made of
GROUP = 16  # rows of bfloat16 in a tile: no fewer can be written at once


@dataclass(frozen=True, slots=True)
class RowLayout:
    """A row of the cache: the key of one position of one head, and its value beside it.

    Heads of up to 64 share one register of lanes, so that nothing is padded: the key lies in the lower half, the value in the
    upper. Queries are zero in the upper half then, and of the weighted sum of whole rows the upper half is the output. Larger ones
    have whole registers for each, which pads heads of 80 and 96 to 128.
    """

    head_dim: int

    @property
    def is_shared(self) -> bool:
        """Whether key and value share registers."""
        return self.head_dim <= LANES // 2

    @property
    def width(self) -> int:
        """Lanes of a row."""
        return LANES if self.is_shared else 2 * self.operand

    @property
    def operand(self) -> int:
        """Lanes of a query, and of an output."""
        return -(-self.head_dim // LANES) * LANES

    def pair(self, k: jax.Array, v: jax.Array) -> jax.Array:
        """Keys and values [..., head_dim] as rows [..., width] bfloat16."""
        half = self.width // 2
        k, v = (jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, half - self.head_dim)]) for x in (k, v))
        return jnp.concatenate([k, v], axis=-1).astype(jnp.bfloat16)

    def widen(self, q: jax.Array) -> jax.Array:
        """Queries [..., head_dim] as [..., operand] bfloat16."""
        return jnp.pad(q.astype(jnp.bfloat16), [(0, 0)] * (q.ndim - 1) + [(0, self.operand - self.head_dim)])

    def narrow(self, out: jax.Array) -> jax.Array:
        """What the kernels make of values, [..., operand], as [..., head_dim]."""
        first = LANES // 2 if self.is_shared else 0
        return out[..., first : first + self.head_dim]
