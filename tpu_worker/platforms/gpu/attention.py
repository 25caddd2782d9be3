"""Paged attention for GPUs, in Pallas on Triton: what a step is made of, worked out once for all layers, and the kernels.

A cache is [blocks, KV heads, 2 (keys, values), page, D], so that a block's keys of one head are one piece of memory. New keys and
values are written first, by XLA's scatter of whole rows, which changes the cache where it lies. Then single tokens attend in one
kernel (`singles`), and rows of several in another (`chunks`).
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tpu_worker.platforms.gpu import chunks, singles
from tpu_worker.platforms.gpu.chunks import Chunks
from tpu_worker.platforms.gpu.singles import Singles
from tpu_worker.platforms.gpu.tiles import Heads, Layer
from tpu_worker.platforms.metadata import AttentionMetadata, AttentionSpec


class Prepared(NamedTuple):
    """Of a step of T tokens and R rows."""

    positions: jax.Array  # [T] int32
    real: jax.Array  # [T] bool: not padding
    blocks: jax.Array  # [T] int32: where its key and value go; of padding a block that is none
    tables: jax.Array  # [R, MB] int32
    singles: Singles  # tokens; where T > R, those of rows with one
    chunks: Chunks | None  # None where T = R: then all are single


def make_caches(num_layers: int, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int) -> list[jax.Array]:
    """For each layer [num_blocks, num_kv_heads, 2, block_size, head_dim] bfloat16."""
    shape = (num_blocks, num_kv_heads, 2, block_size, head_dim)
    return [jnp.zeros(shape, jnp.bfloat16) for _ in range(num_layers)]


def prepare(meta: AttentionMetadata, num_tokens: int, block_size: int) -> Prepared:
    """`platform.Prepare`. A step with as many tokens as rows is taken for decoding: rows of several are attended to one by one."""
    row, positions, real = meta.locate(num_tokens)
    blocks = jnp.where(real, meta.block_tables[row, positions // block_size], -1)
    if num_tokens == meta.starts.shape[0]:
        every = Singles(_count(real), jnp.arange(num_tokens, dtype=jnp.int32), row, positions)
        return Prepared(positions, real, blocks, meta.block_tables, every, None)
    is_single = meta.counts == 1
    rows = jnp.argsort(~is_single, stable=True).astype(jnp.int32)  # those with one token first
    first = meta.offsets[:-1]
    some = Singles(_count(is_single), first[rows], rows, meta.starts[rows])
    several = Chunks(meta.starts, jnp.where(is_single, 0, meta.counts), first)
    return Prepared(positions, real, blocks, meta.block_tables, some, several)


def _count(flags: jax.Array) -> jax.Array:
    return jnp.sum(flags, dtype=jnp.int32)[None]


@dataclass(frozen=True, slots=True)
class Attend:
    """`platform.Attend`."""

    interpret: bool  # the kernels are run step by step on whatever is there, to see what they compute

    def __call__(
        self,
        qkv: jax.Array,
        cache: jax.Array,
        prepared: Prepared,
        rope: jax.Array | None,
        spec: AttentionSpec,
        sinks: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Queries, keys and values are rounded to bfloat16, and so is the output. Donate the cache, or it is copied."""
        num_tokens, num_kv_heads, page = qkv.shape[0], cache.shape[1], cache.shape[3]
        q, k, v = spec.split_heads(qkv, prepared.positions, rope, num_kv_heads)
        heads = Heads(num_kv_heads, q.shape[1] // num_kv_heads, spec.head_dim)
        flat = _write(cache.reshape(-1, spec.head_dim), jnp.stack([k, v], axis=2), prepared, page)
        q = q.astype(jnp.bfloat16).reshape(-1, spec.head_dim)
        layer = Layer(spec, heads, page, prepared.tables, None if sinks is None else sinks.astype(jnp.float32))
        out = None
        if prepared.chunks is not None:
            out = chunks.attend(q, flat, prepared.chunks, layer, interpret=self.interpret)
        out = singles.attend(q, flat, prepared.singles, layer, out=out, interpret=self.interpret)
        out = out.reshape(num_tokens, -1)
        if prepared.chunks is not None:  # which know nothing of padding
            out = jnp.where(prepared.real[:, None], out, jnp.zeros((), out.dtype))
        return out.astype(jnp.float32), flat.reshape(cache.shape)


def _write(flat: jax.Array, new: jax.Array, prepared: Prepared, page: int) -> jax.Array:
    """The rows new [T, KH, 2, D] of the step's tokens in the cache flat [NB * KH * 2 * page, D]."""
    num_kv_heads, head_dim = new.shape[1], new.shape[3]
    part = jnp.arange(2 * num_kv_heads, dtype=jnp.int32)
    rows = (prepared.blocks[:, None] * (2 * num_kv_heads) + part) * page + (prepared.positions % page)[:, None]
    # Each of padding's rows is another one outside: no two are the same, so that none has to wait for the other.
    outside = len(flat) + jnp.arange(rows.size, dtype=jnp.int32).reshape(rows.shape)
    rows = jnp.where(prepared.real[:, None], rows, outside).reshape(-1)
    return flat.at[rows].set(new.astype(flat.dtype).reshape(-1, head_dim), mode="drop", unique_indices=True)
