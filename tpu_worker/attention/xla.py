"""Paged attention in plain XLA: runs wherever JAX does, and is the fallback where no kernel of the platform is there."""

from typing import TypeAlias

import jax
import jax.numpy as jnp

from tpu_worker.attention import AttentionMetadata
from tpu_worker.models.layers import rotate

Pass: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # index, top scores, sums of weights, sums of values

_KEYS_AT_ONCE = 128  # positions per pass: bounds the gathered keys to T × 128 × KH × D values whatever the context


def make_caches(num_layers: int, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int) -> list[jax.Array]:
    """For each layer [2 (keys, values), num_blocks, block_size, num_kv_heads, head_dim], the bits of bfloat16.

    Held as uint16, since XLA's CPU converts the whole operand of a bfloat16 scatter to float32 and back.
    """
    return [jnp.zeros((2, num_blocks, block_size, num_kv_heads, head_dim), jnp.uint16) for _ in range(num_layers)]


def attend_fused(
    qkv: jax.Array,
    cache: jax.Array,
    meta: AttentionMetadata,
    rope: jax.Array | None,
    *,
    num_heads: int,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """As `attention.cpu.attend_fused`: qkv [T, (H + 2 KH) * D] float32, rope [positions, R] float32 or None."""
    num_kv_heads, head_dim = cache.shape[3:]
    heads = qkv.reshape(qkv.shape[0], num_heads + 2 * num_kv_heads, head_dim)
    q, k, v = jnp.split(heads, (num_heads, num_heads + num_kv_heads), axis=1)
    if rope is not None:
        _, positions, _ = meta.locate(qkv.shape[0])
        turns = rope[positions][:, None, :]
        q, k = rotate(q, turns), rotate(k, turns)
    return attend(q, k, v, cache, meta, scale=scale, sliding_window=sliding_window, soft_cap=soft_cap)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cache: jax.Array,
    meta: AttentionMetadata,
    *,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """As `attention.reference.attend`, with keys and values rounded to bfloat16 by the cache.

    An online softmax (Milakov and Gimelshein 2018) over passes of a fixed number of positions from position 0 on, as many as the
    longest row needs: a pass that is all past a row's end changes no bit of it.
    """
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads, block_size = k.shape[1], cache.shape[2]
    rows, positions, real = meta.locate(num_tokens)
    tables = meta.block_tables[rows]  # [T, MB]
    cache = _write(cache, k, v, tables, positions, real)

    blocks_at_once = max(1, _KEYS_AT_ONCE // block_size)
    padding = -tables.shape[1] % blocks_at_once
    tables = jnp.pad(tables, ((0, 0), (0, padding)))
    grouped = (q * scale).reshape(num_tokens, num_kv_heads, num_heads // num_kv_heads, head_dim)
    width = blocks_at_once * block_size

    def one_pass(carry: Pass) -> Pass:
        index, top, total, out = carry
        blocks = jax.lax.dynamic_slice_in_dim(tables, index * blocks_at_once, blocks_at_once, axis=1)
        gathered = jax.lax.bitcast_convert_type(cache[:, blocks], jnp.bfloat16).astype(jnp.float32)
        keys, values = gathered.reshape(2, num_tokens, width, num_kv_heads, head_dim)
        scores = jnp.einsum("tkgd,tskd->tkgs", grouped, keys, precision=jax.lax.Precision.HIGHEST)
        if soft_cap is not None:
            scores = soft_cap * jnp.tanh(scores / soft_cap)
        at = index * width + jnp.arange(width)
        seen = (at <= positions[:, None]) & real[:, None]
        if sliding_window is not None:
            seen &= at > positions[:, None] - sliding_window
        seen = seen[:, None, None, :]
        new_top = jnp.maximum(top, jnp.max(jnp.where(seen, scores, -jnp.inf), axis=-1))
        # `seen` may hold nothing yet (window, padding): a finite reference keeps -inf minus -inf out.
        reference = jnp.where(jnp.isfinite(new_top), new_top, 0.0)
        weights = jnp.where(seen, jnp.exp(scores - reference[..., None]), 0.0)
        shrink = jnp.where(jnp.isfinite(top), jnp.exp(top - reference), 0.0)
        # What lies behind unseen positions may be anything, NaN included, and 0 × NaN is NaN.
        values = jnp.where(seen[:, 0, 0, :, None, None], values, 0.0)
        partial = jnp.einsum("tkgs,tskd->tkgd", weights, values, precision=jax.lax.Precision.HIGHEST)
        return index + 1, new_top, total * shrink + weights.sum(-1), out * shrink[..., None] + partial

    passes = (jnp.max(jnp.where(real, positions, -1)) + width) // width
    shape = grouped.shape[:-1]
    start = (jnp.int32(0), jnp.full(shape, -jnp.inf), jnp.zeros(shape), jnp.zeros(grouped.shape))
    _, _, total, out = jax.lax.while_loop(lambda carry: carry[0] < passes, one_pass, start)
    out = out / jnp.where(total > 0, total, 1.0)[..., None]
    return out.reshape(num_tokens, num_heads, head_dim), cache


def _write(cache: jax.Array, k: jax.Array, v: jax.Array, tables: jax.Array, positions: jax.Array, real: jax.Array) -> jax.Array:
    num_blocks, block_size = cache.shape[1:3]
    blocks = jnp.take_along_axis(tables, (positions // block_size)[:, None], axis=1)[:, 0]
    blocks = jnp.where(real, blocks, num_blocks)  # outside: dropped
    bits = jax.lax.bitcast_convert_type(jnp.stack([k, v]).astype(jnp.bfloat16), jnp.uint16)  # [2, T, KH, D]
    return cache.at[:, blocks, positions % block_size].set(bits, mode="drop")
