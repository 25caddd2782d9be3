"""Compiles attention alone, in heads of many shapes, for GPUs that are not there: `… compile_attention GPU`.

A process of its own, as `compile_steps`. Writes, by shape, which instructions copy the cache, as JSON.
"""

import json
import os
import sys

from tpu_worker.aot.topology import ENVIRONMENT, open_topology

os.environ |= ENVIRONMENT

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from protocol.chips import parse_topology
from tests.tpu_worker.platforms.tpu.compile_attention import NUM_BLOCKS, ROWS, SHAPES, TABLE
from tpu_worker.aot.program_text import find_copies
from tpu_worker.platforms.gpu.attention import Attend, make_caches, prepare
from tpu_worker.platforms.metadata import AttentionMetadata, AttentionSpec


def copies_of(mesh: Mesh, shape: tuple[int, int, int, int, int | None, float | None, bool], tokens: int) -> list[str]:
    """Those of the cache in a step of so many tokens."""
    heads, kv_heads, dim, page, window, cap, has_sinks = shape

    def of(shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    def attend(qkv: jax.Array, cache: jax.Array, meta: AttentionMetadata, sinks: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        spec = AttentionSpec(dim, dim**-0.5, window, cap)
        return Attend(interpret=False)(qkv, cache, prepare(meta, tokens, page), None, spec, sinks)

    (cache,) = jax.eval_shape(lambda: make_caches(1, NUM_BLOCKS, page, kv_heads, dim))
    meta = AttentionMetadata(of((ROWS, TABLE)), of((ROWS,)), of((ROWS,)), of((ROWS + 1,)))  # type: ignore[arg-type]
    qkv = of((tokens, (heads + 2 * kv_heads) * dim), jnp.float32)
    sinks = of((heads,), jnp.float32) if has_sinks else None
    compiled = jax.jit(attend, donate_argnums=1).lower(qkv, of(cache.shape, cache.dtype), meta, sinks).compile()
    return find_copies(compiled.as_text() or "", {cache.shape})


if __name__ == "__main__":
    mesh = open_topology(parse_topology(sys.argv[1]), 1)
    with jax.set_mesh(mesh):
        json.dump({str(shape): [copies_of(mesh, shape, tokens) for tokens in (ROWS, 256)] for shape in SHAPES}, sys.stdout)
