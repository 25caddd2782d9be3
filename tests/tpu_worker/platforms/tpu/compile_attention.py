"""Compiles attention alone, in heads of many shapes, for chips that are not there: `… compile_attention TOPOLOGY`.

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
from tpu_worker.aot.program_text import find_copies
from tpu_worker.platforms.cache_types import CacheType
from tpu_worker.platforms.metadata import AttentionMetadata, AttentionSpec
from tpu_worker.platforms.tpu.attention import Attend, make_caches, prepare
from tpu_worker.platforms.tpu.layout import Cache

# Heads, heads of keys, features, positions of a block, window, cap, sinks.
SHAPES: tuple[tuple[int, int, int, int, int | None, float | None, bool], ...] = (
    (9, 3, 64, 16, None, None, False),  # SmolLM2 135M
    (16, 2, 64, 128, 128, None, True),  # gpt-oss 20B, on four chips
    (4, 1, 256, 64, 1024, None, False),  # Gemma 3 1B
    (8, 4, 256, 64, 4096, 50.0, False),  # Gemma 2 2B
    (32, 32, 96, 256, 2047, None, False),  # Phi 3 mini
    (40, 40, 128, 64, None, None, False),  # OLMo 2 13B
    (2, 1, 128, 128, None, None, False),  # Qwen 3 0.6B, on eight chips
)
# Rows that fill no tiles, scales that fill no registers.
OF_OTHER_TYPES: tuple[tuple[CacheType, tuple[int, int, int, int, int | None, float | None, bool]], ...] = (
    ("int8", (32, 8, 64, 128, None, None, False)),
    ("int8", (9, 3, 64, 32, 100, 30.0, True)),
    ("fp8_e4m3", (16, 2, 128, 32, None, None, False)),
    ("fp8_e5m2", (4, 1, 256, 64, 1024, None, False)),
    ("float32", (9, 3, 64, 64, None, None, False)),
)
NUM_BLOCKS, ROWS, TABLE = 1024, 16, 512


def copies_of(
    mesh: Mesh, shape: tuple[int, int, int, int, int | None, float | None, bool], tokens: int, kept: CacheType = "bfloat16"
) -> list[str]:
    """Those of a cache of this type in a step of so many tokens."""
    heads, kv_heads, dim, page, window, cap, has_sinks = shape

    def of(shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    def attend(qkv: jax.Array, cache: Cache, meta: AttentionMetadata, sinks: jax.Array | None) -> tuple[jax.Array, Cache]:
        spec = AttentionSpec(dim, dim**-0.5, window, cap)
        return Attend(interpret=False, kept=kept)(qkv, cache, prepare(meta, tokens, page), None, spec, sinks)

    (cache,) = jax.eval_shape(lambda: make_caches(1, NUM_BLOCKS, page, kv_heads, dim, kept=kept))
    meta = AttentionMetadata(of((ROWS, TABLE)), of((ROWS,)), of((ROWS,)), of((ROWS + 1,)))  # type: ignore[arg-type]
    qkv = of((tokens, (heads + 2 * kv_heads) * dim), jnp.float32)
    sinks = of((heads,), jnp.float32) if has_sinks else None
    held = jax.tree.map(lambda array: of(array.shape, array.dtype), cache)
    compiled = jax.jit(attend, donate_argnums=1).lower(qkv, held, meta, sinks).compile()
    return find_copies(compiled.as_text() or "", {array.shape for array in jax.tree.leaves(cache)})


if __name__ == "__main__":
    mesh = open_topology(parse_topology(sys.argv[1]), 1)
    with jax.set_mesh(mesh):
        found = {str(shape): [copies_of(mesh, shape, tokens) for tokens in (ROWS, 256)] for shape in SHAPES}
        for kept, shape in OF_OTHER_TYPES:
            found[str((kept, shape))] = [copies_of(mesh, shape, tokens, kept) for tokens in (ROWS, 256)]
    json.dump(found, sys.stdout)
