"""Paged attention: modules with one signature, `attend`, and what they are told about a step."""

from dataclasses import dataclass

import jax


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Which tokens of a step belong to which row, and where each row's keys and values lie.

    T tokens of R rows, one after the other: row r owns tokens offsets[r] … offsets[r + 1] - 1, at the positions starts[r] + i of
    its sequence. The position p of row r lies in the cache at block block_tables[r, p // block_size], offset p % block_size.
    Rows with a count of 0 are padding, and so are the tokens from offsets[R] on: they write nothing, and their output is zero.
    """

    block_tables: jax.Array  # [R, MB] int32; entries past the end of a sequence mean nothing
    starts: jax.Array  # [R] int32
    counts: jax.Array  # [R] int32
    offsets: jax.Array  # [R + 1] int32, offsets[0] = 0
