"""Paged attention for the CPU, in C++ (tpu_worker/native/paged.h): ragged, the cache updated in place, f32 arithmetic.

What a token computes depends on its sequence and its position only: it has the same bits in every batch, in every chunking of its
prompt, and whether it came as a prompt token or was decoded.
"""

import jax
import jax.numpy as jnp
import numpy as np

from tpu_worker.attention import AttentionMetadata
from tpu_worker.native import build
from tpu_worker.stacking import Layer, find


def supports(block_size: int, head_dim: int) -> bool:
    """Whether the kernel takes these sizes: it works in panels of 16 positions and of 16 features."""
    return block_size % 16 == 0 and head_dim % 16 == 0


def make_caches(num_layers: int, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int) -> jax.Array:
    """Empty caches: [layers, blocks, KV heads, keys and values, block_size, head_dim] uint16, the bits of bf16.

    Within a block of a head, positions and features lie as the kernel reads them; only `attend` can tell where. What is in it
    at first means nothing: no position is read before it was written. So its memory is taken, page by page, as it fills.
    """
    build.library("attention")
    shape = jax.ShapeDtypeStruct((num_layers, num_blocks, num_kv_heads, 2, block_size, head_dim), jnp.uint16)
    caches: jax.Array = jax.ffi.ffi_call("twodeep_reserve", shape)()
    return caches


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cache: Layer,
    meta: AttentionMetadata,
    *,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
) -> tuple[jax.Array, Layer]:
    """Writes k and v [T, KH, D] f32 to the cache, then attends with q [T, H, D] f32 -> (out [T, H, D] f32, cache).

    Donate the cache, or it is copied. As `attention.reference.attend`, with keys and values rounded to bf16. Tokens behind the rows
    of meta are padding: they are never read, and come out as anything.
    """
    return _call(q, k, v, cache, meta, None, q.shape[1], (0, 0, 0), scale, sliding_window, soft_cap)


def attend_fused(
    qkv: jax.Array,
    cache: Layer,
    meta: AttentionMetadata,
    rope: jax.Array | None,
    *,
    num_heads: int,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
) -> tuple[jax.Array, Layer]:
    """The same from the output of the fused projection, rotary embedding included.

    qkv: [T, (H + 2 KH) * D] f32, all heads of q, then of k, then of v. rope: [positions, R] f32, for each position the cosines of
    R / 2 frequencies and then their sines, or None; the first R features of each head are rotated by halves, i with i + R / 2.
    """
    num_kv_heads, head_dim = cache.stack.shape[2], cache.stack.shape[5]
    offsets = (0, num_heads * head_dim, (num_heads + num_kv_heads) * head_dim)
    return _call(qkv, qkv, qkv, cache, meta, rope, num_heads, offsets, scale, sliding_window, soft_cap)


def _call(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cache: Layer,
    meta: AttentionMetadata,
    rope: jax.Array | None,
    num_heads: int,
    feature_offsets: tuple[int, int, int],
    scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
) -> tuple[jax.Array, Layer]:
    build.library("attention")
    caches, layer = find(cache)
    shapes = (
        jax.ShapeDtypeStruct((q.shape[0], num_heads, caches.shape[5]), jnp.float32),
        jax.ShapeDtypeStruct(caches.shape, caches.dtype),
    )
    out: jax.Array
    updated: jax.Array
    out, updated = jax.ffi.ffi_call("twodeep_attend", shapes, input_output_aliases={3: 1})(
        q,
        k,
        v,
        caches,
        jnp.zeros((0, 0), jnp.float32) if rope is None else rope,
        meta.block_tables,
        meta.starts,
        meta.counts,
        meta.offsets,
        layer,
        q_offset=np.int32(feature_offsets[0]),
        k_offset=np.int32(feature_offsets[1]),
        v_offset=np.int32(feature_offsets[2]),
        scale=np.float32(scale),
        window=np.int32(sliding_window or 0),
        cap=np.float32(soft_cap or 0.0),
    )
    return out, Layer(updated, cache.index)
