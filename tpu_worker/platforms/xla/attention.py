"""Paged attention in plain XLA: runs wherever JAX does, and is the fallback where no kernel of the platform is there."""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from protocol.config import FloatType
from tpu_worker.models.layers import sum_last
from tpu_worker.platforms.metadata import AttentionMetadata, AttentionSpec

Pass: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # index, top scores, sums of weights, sums of values

_KEYS_AT_ONCE = 128  # positions per pass: bounds the gathered keys to T × 128 × KH × D values whatever the context
_OUTSIDE = 2**31 - 1  # a block that no cache has: what is written there is dropped


def make_caches(
    num_layers: int, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int, *, dtype: FloatType = "bfloat16"
) -> list[jax.Array]:
    """For each layer [2 (keys, values), num_blocks, block_size, num_kv_heads, head_dim], float32 or the bits of bfloat16.

    The latter are held as uint16, since XLA's CPU converts the whole operand of a bfloat16 scatter to float32 and back.
    """
    kept = jnp.uint16 if dtype == "bfloat16" else jnp.float32
    return [jnp.zeros((2, num_blocks, block_size, num_kv_heads, head_dim), kept) for _ in range(num_layers)]


class Prepared(NamedTuple):
    """Of each of T tokens."""

    positions: jax.Array  # [T] int32
    real: jax.Array  # [T] bool: not padding
    tables: jax.Array  # [T, MB] int32: blocks of its row, filled up to whole passes
    blocks: jax.Array  # [T] int32: where its keys and values go; of padding outside of every cache …
    offsets: jax.Array  # [T] int32: … and where in the block


def prepare(meta: AttentionMetadata, num_tokens: int, block_size: int) -> Prepared:
    """`platform.Prepare`."""
    rows, positions, real = meta.locate(num_tokens)
    tables = meta.block_tables[rows]
    blocks = jnp.take_along_axis(tables, (positions // block_size)[:, None], axis=1)[:, 0]
    tables = jnp.pad(tables, ((0, 0), (0, -tables.shape[1] % _blocks_at_once(block_size))))
    return Prepared(positions, real, tables, jnp.where(real, blocks, _OUTSIDE), positions % block_size)


def attend(
    qkv: jax.Array,
    cache: jax.Array,
    prepared: Prepared,
    rope: jax.Array | None,
    spec: AttentionSpec,
    sinks: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`platform.Attend`: as `reference.attend`, with keys and values rounded to bfloat16 by a cache of that.

    An online softmax (Milakov and Gimelshein 2018) over passes of a fixed number of positions that begin at position 0, from the
    first that any token sees to the last: a pass that is all past a row's end, or behind its window, changes no bit of it.
    """
    num_tokens, head_dim, (block_size, num_kv_heads) = qkv.shape[0], spec.head_dim, cache.shape[2:4]
    positions, real = prepared.positions, prepared.real
    q, k, v = spec.split_heads(qkv, positions, rope, num_kv_heads)
    num_heads = q.shape[1]
    new = _narrow(jnp.stack([k, v]), cache.dtype)  # [2, T, KH, D]
    cache = cache.at[:, prepared.blocks, prepared.offsets].set(new, mode="drop")

    blocks_at_once = _blocks_at_once(block_size)
    grouped = (q * spec.scale).reshape(num_tokens, num_kv_heads, num_heads // num_kv_heads, head_dim)
    width = blocks_at_once * block_size

    def one_pass(carry: Pass) -> Pass:
        index, top, total, out = carry
        blocks = jax.lax.dynamic_slice_in_dim(prepared.tables, index * blocks_at_once, blocks_at_once, axis=1)
        keys, values = _widen(cache[:, blocks]).reshape(2, num_tokens, width, num_kv_heads, head_dim)
        scores = jnp.einsum("tkgd,tskd->tkgs", grouped, keys, precision=jax.lax.Precision.HIGHEST)
        if spec.soft_cap is not None:
            scores = spec.soft_cap * jnp.tanh(scores / spec.soft_cap)
        at = index * width + jnp.arange(width)
        seen = (at <= positions[:, None]) & real[:, None]
        if spec.sliding_window is not None:
            seen &= at > positions[:, None] - spec.sliding_window
        seen = seen[:, None, None, :]
        new_top = jnp.maximum(top, jnp.max(jnp.where(seen, scores, -jnp.inf), axis=-1))
        # `seen` may hold nothing yet (window, padding): a finite reference keeps -inf minus -inf out.
        reference = jnp.where(jnp.isfinite(new_top), new_top, 0.0)
        weights = jnp.where(seen, jnp.exp(scores - reference[..., None]), 0.0)
        shrink = jnp.where(jnp.isfinite(top), jnp.exp(top - reference), 0.0)
        # What lies behind unseen positions may be anything, NaN included, and 0 × NaN is NaN.
        values = jnp.where(seen[:, 0, 0, :, None, None], values, 0.0)
        partial = jnp.einsum("tkgs,tskd->tkgd", weights, values, precision=jax.lax.Precision.HIGHEST)
        return index + 1, new_top, total * shrink + sum_last(weights), out * shrink[..., None] + partial

    first = jnp.int32(0)
    if spec.sliding_window is not None:
        first = jnp.min(jnp.where(real, jnp.maximum(positions + 1 - spec.sliding_window, 0), _OUTSIDE)) // width
    passes = (jnp.max(jnp.where(real, positions, -1)) + width) // width
    shape = grouped.shape[:-1]
    if sinks is None:
        top, total = jnp.full(shape, -jnp.inf), jnp.zeros(shape)
    else:  # as if a position with that score, and a value of zero, had been seen before all others
        top, total = jnp.broadcast_to(sinks.reshape(shape[1:]), shape), jnp.ones(shape)
    start = (first, top, total, jnp.zeros(grouped.shape))
    _, _, total, out = jax.lax.while_loop(lambda carry: carry[0] < passes, one_pass, start)
    out = out / jnp.where(total > 0, total, 1.0)[..., None]
    return out.reshape(num_tokens, num_heads * head_dim), cache


def _narrow(x: jax.Array, kept: jnp.dtype) -> jax.Array:
    """float32 as a cache of this type holds it."""
    return x if kept == jnp.float32 else jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)


def _widen(x: jax.Array) -> jax.Array:
    """What a cache holds, as float32."""
    return x if x.dtype == jnp.float32 else jax.lax.bitcast_convert_type(x, jnp.bfloat16).astype(jnp.float32)


def _blocks_at_once(block_size: int) -> int:
    return max(1, _KEYS_AT_ONCE // block_size)
