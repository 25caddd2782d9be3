"""Paged attention for the CPU, in C++ (native/paged.h): ragged, the cache updated in place, f32 arithmetic.

What a token computes depends on its sequence and its position only: it has the same bits in every batch, in every chunking of its
prompt, and whether it came as a prompt token or was decoded.
"""

import jax
import jax.numpy as jnp
import numpy as np

from protocol.config import FloatType
from tpu_worker.platforms.cpu.native import build
from tpu_worker.platforms.metadata import AttentionMetadata, AttentionSpec
from tpu_worker.stacking import Layer, find


def supports(block_size: int, head_dim: int) -> bool:
    """Whether the kernel takes these sizes: it works in panels of 16 positions and of 16 features."""
    return block_size % 16 == 0 and head_dim % 16 == 0


def make_caches(
    num_layers: int, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int, *, dtype: FloatType = "bfloat16"
) -> jax.Array:
    """Empty caches: [layers, blocks, KV heads, keys and values, block_size, head_dim] uint16, the bits of bf16, or float32.

    Within a block of a head, positions and features lie as the kernel reads them; only `attend` can tell where. What is in it
    at first means nothing: no position is read before it was written. So its memory is taken, page by page, as it fills.
    """
    kept = jnp.dtype(jnp.uint16 if dtype == "bfloat16" else jnp.float32)
    suffix = _library_for(kept)
    shape = jax.ShapeDtypeStruct((num_layers, num_blocks, num_kv_heads, 2, block_size, head_dim), kept)
    caches: jax.Array = jax.ffi.ffi_call(f"twodeep_reserve{suffix}", shape)()
    return caches


def _library_for(kept: jnp.dtype) -> str:
    """Loads the one for caches of this type, and returns what the names of its custom calls end in."""
    suffix = build.FLOAT32 if kept == jnp.float32 else ""
    build.library(f"attention{suffix}")
    return suffix


def prepare(meta: AttentionMetadata, num_tokens: int, block_size: int) -> AttentionMetadata:  # noqa: ARG001
    """`platform.Prepare`: the kernel works from the metadata."""
    return meta


def attend(
    qkv: jax.Array,
    cache: Layer,
    prepared: AttentionMetadata,
    rope: jax.Array | None,
    spec: AttentionSpec,
    sinks: jax.Array | None = None,
) -> tuple[jax.Array, Layer]:
    """`platform.Attend`. Donate the cache, or it is copied.

    The first features of each head, as many as rope is wide, are rotated by halves: i with i + R / 2. Tokens behind the rows of
    `prepared` are padding: they are never read, and come out as anything.
    """
    num_kv_heads, head_dim = cache.stack.shape[2], cache.stack.shape[5]
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    if spec.position_scale is not None:
        qkv = spec.scale_queries(qkv, prepared.locate(qkv.shape[0])[1], num_heads)
    offsets = (0, num_heads * head_dim, (num_heads + num_kv_heads) * head_dim)
    out, cache = _call(qkv, qkv, qkv, cache, prepared, rope, num_heads, offsets, spec, sinks)
    return out.reshape(qkv.shape[0], -1), cache


def attend_apart(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cache: Layer,
    prepared: AttentionMetadata,
    spec: AttentionSpec,
    sinks: jax.Array | None = None,
) -> tuple[jax.Array, Layer]:
    """The same of q [T, H, D] and of k and v [T, KH, D], float32 arrays of their own, unrotated -> (out [T, H, D], cache)."""
    return _call(q, k, v, cache, prepared, None, q.shape[1], (0, 0, 0), spec, sinks)


def _call(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cache: Layer,
    meta: AttentionMetadata,
    rope: jax.Array | None,
    num_heads: int,
    feature_offsets: tuple[int, int, int],
    spec: AttentionSpec,
    sinks: jax.Array | None,
) -> tuple[jax.Array, Layer]:
    caches, layer = find(cache)
    suffix = _library_for(caches.dtype)
    shapes = (
        jax.ShapeDtypeStruct((q.shape[0], num_heads, caches.shape[5]), jnp.float32),
        jax.ShapeDtypeStruct(caches.shape, caches.dtype),
    )
    out: jax.Array
    updated: jax.Array
    out, updated = jax.ffi.ffi_call(f"twodeep_attend{suffix}", shapes, input_output_aliases={3: 1})(
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
        jnp.zeros((0,), jnp.float32) if sinks is None else sinks,
        q_offset=np.int32(feature_offsets[0]),
        k_offset=np.int32(feature_offsets[1]),
        v_offset=np.int32(feature_offsets[2]),
        scale=np.float32(spec.scale),
        window=np.int32(spec.sliding_window or 0),
        cap=np.float32(spec.soft_cap or 0.0),
    )
    return out, Layer(updated, cache.index)
