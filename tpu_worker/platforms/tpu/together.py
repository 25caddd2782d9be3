"""Heads of keys that one product of a decoding token takes together.

A matrix unit takes 256 features of a key in, where heads have 128 lanes, and a register 8 rows, where few queries read the same
head. So the keys of several heads lie side by side, and the queries of these below each other, each in the lanes of its own head
and zero in the others': what comes out is exact, and takes half as long or less.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from tpu_worker.platforms.tpu.layout import LANES

_SUBLANES = 8  # rows of a register: queries are filled up to as many


@dataclass(frozen=True, slots=True)
class Together:
    """`count` heads of keys, P below, each read by `group` queries, G below. Heads i, i + KH / P, i + 2 KH / P, … are together."""

    count: int
    group: int

    @property
    def rows(self) -> int:
        """M: queries of all, filled up to whole registers."""
        return -(-self.count * self.group // _SUBLANES) * _SUBLANES

    def widen(self, q: jax.Array) -> jax.Array:
        """q [N, KH, G, operand] as [N, KH / P, M, P * operand]."""
        tokens, num_kv_heads, group, operand = q.shape
        apart = q.reshape(tokens, self.count, -1, group, operand).swapaxes(1, 2)[..., None, :]
        mine = jnp.eye(self.count, dtype=bool)[:, None, :, None]
        wide = jnp.where(mine, apart, jnp.zeros((), q.dtype)).reshape(tokens, -1, self.count * group, self.count * operand)
        return jnp.pad(wide, ((0, 0), (0, 0), (0, self.rows - self.count * group), (0, 0)))

    def narrow(self, out: jax.Array) -> jax.Array:
        """What comes out, [N, KH / P, M, P * operand], as [N, KH, G, operand]."""
        group = self.group
        operand = out.shape[-1] // self.count
        mine = [out[:, :, p * group : (p + 1) * group, p * operand : (p + 1) * operand] for p in range(self.count)]
        return jnp.concatenate(mine, axis=1)

    def sinks(self, sinks: jax.Array) -> jax.Array:
        """sinks [KH, G] as [KH / P, M]."""
        below = sinks.reshape(self.count, -1, self.group).swapaxes(0, 1).reshape(-1, self.count * self.group)
        return jnp.pad(below, ((0, 0), (0, self.rows - self.count * self.group)))

    def side_by_side(self, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Rows of the cache [KH, S, width] as keys and values, each [KH / P, S, P * operand]."""
        width = rows.shape[-1]
        parts = [(0, width)] if width == LANES else [(0, width // 2), (width // 2, width)]

        def of_all(first: int, end: int) -> jax.Array:
            # Heads that are far apart go together: no slice has a stride, which Mosaic does not take.
            apart = jnp.split(rows[..., first:end], self.count)
            return apart[0] if self.count == 1 else jnp.concatenate(apart, axis=-1)

        found = [of_all(*part) for part in parts]
        return found[0], found[-1]


def choose_together(num_kv_heads: int, group: int) -> Together:
    """As many heads as fill a register with their queries; two where there are that many, since a matrix unit has room for them."""
    fitting = [
        count for count in range(1, num_kv_heads + 1) if num_kv_heads % count == 0 and (count * group <= _SUBLANES or count <= 2)
    ]
    return Together(max(fitting), group)


ALONE = Together(1, 1)
