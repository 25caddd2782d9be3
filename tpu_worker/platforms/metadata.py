"""What attention is told: about a step, and about a layer."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from tpu_worker.models.rope import rotate


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Which tokens of a step belong to which row, and where each row's keys and values lie.

    T tokens of R rows, one after the other: row r owns tokens offsets[r] … offsets[r + 1] - 1, at the positions starts[r] + i of
    its sequence. The position p of row r lies in the cache at block block_tables[r, p // block_size], offset p % block_size.
    Rows with a count of 0 are padding, and so are the tokens from offsets[R] on: they write nothing, and their output is zero.
    """

    # [R, MB] int32. Entries past the end of a sequence mean nothing. Those of blocks that a layer's window leaves nothing of name
    # some block of the cache, which may hold anything, NaN included.
    block_tables: jax.Array
    starts: jax.Array  # [R] int32
    counts: jax.Array  # [R] int32
    offsets: jax.Array  # [R + 1] int32, offsets[0] = 0

    def locate(self, num_tokens: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Of each of T tokens its row and position, [T] int32, and whether it is real, [T] bool; padding has row and position 0."""
        tokens = jnp.arange(num_tokens, dtype=jnp.int32)
        rows = jnp.searchsorted(self.offsets[1:], tokens, side="right", method="compare_all").astype(jnp.int32)
        real = rows < self.starts.shape[0]
        rows = jnp.where(real, rows, 0)
        return rows, jnp.where(real, self.starts[rows] + tokens - self.offsets[rows], 0), real


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """How a layer attends. How many heads it has follows from its projection and its cache."""

    head_dim: int
    scale: float  # of the scores
    sliding_window: int | None = None  # tokens that a token attends to, itself included; None: all before it
    soft_cap: float | None = None  # c: a score s becomes c · tanh(s / c) (Gemma 2)
    rotary_dim: int | None = None  # features of a head that are rotated; None: as many as the rotary table is wide
    position_scale: tuple[float, int] | None = None  # (b, n): queries at p are multiplied by 1 + b · log(1 + ⌊p / n⌋) (Llama 4)

    def scale_queries(self, qkv: jax.Array, positions: jax.Array, num_heads: int) -> jax.Array:
        """qkv [T, (H + 2 KH) * D] with its queries, at positions [T], multiplied as `position_scale` has it."""
        if self.position_scale is None:
            return qkv
        slope, length = self.position_scale
        factor = 1 + jnp.float32(slope) * jnp.log1p((positions // length).astype(jnp.float32))
        is_query = jnp.arange(qkv.shape[1]) < num_heads * self.head_dim
        return qkv * jnp.where(is_query, factor[:, None], jnp.float32(1.0))

    def split_heads(
        self, qkv: jax.Array, positions: jax.Array, rope: jax.Array | None, num_kv_heads: int
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [T, H, D] before `scale`, keys and values [T, KH, D] of qkv [T, (H + 2 KH) * D], at positions [T].

        rope: the rotary table, by position; None: nothing is rotated.
        """
        num_heads = qkv.shape[1] // self.head_dim - 2 * num_kv_heads
        heads = self.scale_queries(qkv, positions, num_heads).reshape(qkv.shape[0], -1, self.head_dim)
        q, k, v = jnp.split(heads, (num_heads, num_heads + num_kv_heads), axis=1)
        if rope is not None:
            turns = rope[positions][:, None, : self.rotary_dim]
            q, k = rotate(q, turns), rotate(k, turns)
        return q, k, v
