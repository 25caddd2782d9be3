"""Paged attention in plain XLA: runs wherever JAX does, and is the fallback where no kernel of the platform is there."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from tpu_worker.models.layers import sum_last
from tpu_worker.platforms.cache_types import DTYPES, CacheType, quantise, round_to
from tpu_worker.platforms.metadata import AttentionMetadata, AttentionSpec

Pass: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # index, top scores, sums of weights, sums of values

_KEYS_AT_ONCE = 128  # positions per pass: bounds the gathered keys to T × 128 × KH × D values whatever the context
_OUTSIDE = 2**31 - 1  # a block that no cache has: what is written there is dropped


class ScaledCache(NamedTuple):
    """A cache of integers, or what goes into it."""

    numbers: jax.Array  # [2 (keys, values), NB, block_size, KH, D] int8
    scales: jax.Array  # [2, NB, block_size, KH] uint16, the bits of bfloat16


Cache: TypeAlias = jax.Array | ScaledCache  # of one layer

# What is held: of small floats the bits, since XLA's CPU converts the whole operand of a scatter of these to larger ones and back.
_HELD: Mapping[CacheType, jnp.dtype] = MappingProxyType(
    {
        "float32": jnp.dtype(jnp.float32),
        "bfloat16": jnp.dtype(jnp.uint16),
        "fp8_e4m3": jnp.dtype(jnp.uint8),
        "fp8_e5m2": jnp.dtype(jnp.uint8),
        "int8": jnp.dtype(jnp.int8),
    }
)


def make_caches(
    num_layers: int, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int, *, kept: CacheType = "bfloat16"
) -> list[Cache]:
    """For each layer [2 (keys, values), num_blocks, block_size, num_kv_heads, head_dim] of this type, and scales of integers."""
    shape = (2, num_blocks, block_size, num_kv_heads, head_dim)

    def make() -> Cache:
        numbers = jnp.zeros(shape, _HELD[kept])
        return ScaledCache(numbers, jnp.zeros(shape[:-1], jnp.uint16)) if kept == "int8" else numbers

    return [make() for _ in range(num_layers)]


def bytes_of_scales(block_size: int, num_kv_heads: int) -> int:
    """Of a block of integers in a layer."""
    return 2 * block_size * num_kv_heads * 2


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
    cache: Cache,
    prepared: Prepared,
    rope: jax.Array | None,
    spec: AttentionSpec,
    sinks: jax.Array | None = None,
    *,
    kept: CacheType = "bfloat16",
) -> tuple[jax.Array, Cache]:
    """`platform.Attend`: as `reference.attend`, with keys and values rounded to what the cache keeps.

    An online softmax (Milakov and Gimelshein 2018) over passes of a fixed number of positions that begin at position 0, from the
    first that any token sees to the last: a pass that is all past a row's end, or behind its window, changes no bit of it.
    """
    num_tokens, head_dim, (block_size, num_kv_heads) = qkv.shape[0], spec.head_dim, jax.tree.leaves(cache)[0].shape[2:4]
    positions, real = prepared.positions, prepared.real
    q, k, v = spec.split_heads(qkv, positions, rope, num_kv_heads)
    num_heads = q.shape[1]
    new = _narrow(jnp.stack([k, v]), kept)  # [2, T, KH, D]
    where = (slice(None), prepared.blocks, prepared.offsets)
    cache = jax.tree.map(lambda held, some: held.at[where].set(some, mode="drop"), cache, new)

    blocks_at_once = _blocks_at_once(block_size)
    grouped = (q * spec.scale).reshape(num_tokens, num_kv_heads, num_heads // num_kv_heads, head_dim)
    width = blocks_at_once * block_size

    def one_pass(carry: Pass) -> Pass:
        index, top, total, out = carry
        blocks = jax.lax.dynamic_slice_in_dim(prepared.tables, index * blocks_at_once, blocks_at_once, axis=1)
        some = jax.tree.map(lambda held: held[:, blocks], cache)
        keys, values = _widen(some, kept).reshape(2, num_tokens, width, num_kv_heads, head_dim)
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


def _narrow(x: jax.Array, kept: CacheType) -> Cache:
    """float32 [..., D] as a cache of this type holds it."""
    if kept == "int8":
        numbers, scales = quantise(x)
        return ScaledCache(numbers, jax.lax.bitcast_convert_type(scales, jnp.uint16))
    return jax.lax.bitcast_convert_type(round_to(x, kept), _HELD[kept])


def _widen(held: Cache, kept: CacheType) -> jax.Array:
    """The reverse."""
    if isinstance(held, ScaledCache):
        scales = jax.lax.bitcast_convert_type(held.scales, jnp.bfloat16).astype(jnp.float32)
        return held.numbers.astype(jnp.float32) * scales[..., None]
    return jax.lax.bitcast_convert_type(held, DTYPES[kept]).astype(jnp.float32)


def _blocks_at_once(block_size: int) -> int:
    return max(1, _KEYS_AT_ONCE // block_size)
