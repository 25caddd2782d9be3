"""The known tokens of a step's rows, on the device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Contexts(NamedTuple):
    """Those of R rows, where all slots have theirs: of a row no more is read than is wanted."""

    history: jax.Array  # [S, L] int32, of which the first lengths[r] tokens are row r's
    slots: jax.Array  # [R] int32; S or more is read as the last one
    lengths: jax.Array  # [R] int32

    def chunk(self, start: jax.Array, size: int) -> jax.Array:
        """Tokens [R, size] from a position [] on, or from the last one behind which there are as many."""

        def of_row(slot: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice(self.history, (slot, start), (1, size))[0]

        tokens: jax.Array = jax.vmap(of_row)(self.slots)
        return tokens

    def at(self, positions: jax.Array) -> jax.Array:
        """Tokens [R, N] at positions [R, N]; of those outside of the history, the nearest."""
        return self.history.at[self.slots[:, None], jnp.maximum(positions, 0)].get(mode="clip")
