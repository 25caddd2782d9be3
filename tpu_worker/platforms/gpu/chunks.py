"""Attention of rows with several tokens, which prompts are: the tokens of a block share what is read of their row."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from tpu_worker.platforms.gpu.tiles import (
    FEWEST_QUERIES,
    STAGES,
    Heads,
    Layer,
    Ref,
    Span,
    Tiles,
    add_sinks,
    begin,
    ends_of,
    find_owner,
    load_rows,
    power_of_two,
    store_rows,
)
from tpu_worker.platforms.metadata import AttentionSpec

_MOST_VALUES = 128 * 64  # of a block of queries: as many sums stay in the registers of four warps


class Chunks(NamedTuple):
    """Rows of a step."""

    starts: jax.Array  # [R] int32, as in `AttentionMetadata`
    counts: jax.Array  # [R] int32, likewise, of those with several tokens; else 0
    offsets: jax.Array  # [R] int32, likewise


def attend(
    q: jax.Array,
    cache: jax.Array,
    chunks: Chunks,
    layer: Layer,
    *,
    interpret: bool,
) -> jax.Array:
    """The output [T * H, D] bfloat16, of which only what comes out for tokens of rows in `chunks` means anything.

    Operands are as those of `singles.attend`.
    """
    spec, heads, sinks = layer.spec, layer.heads, layer.sinks
    num_tokens = len(q) // (heads.kv_heads * heads.group)
    tokens = tokens_of_block(num_tokens, heads)
    ends = ends_of((chunks.counts + tokens - 1) // tokens)
    operands = [ends, *chunks, layer.tables, q, cache] + ([] if sinks is None else [sinks])
    out: jax.Array = pl.pallas_call(
        functools.partial(_kernel, spec, heads, layer.page, tokens, sinks is not None),
        # A row has one block that is not full, at most.
        grid=(num_tokens // tokens + len(chunks.counts), heads.kv_heads),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=plgpu.CompilerParams(
            num_warps=8 if tokens * heads.padded_group * heads.padded_dim > _MOST_VALUES else 4, num_stages=STAGES
        ),
        interpret=interpret,
        name="attend_chunks",
    )(*operands)
    return out


def tokens_of_block(num_tokens: int, heads: Heads) -> int:
    """A power of two."""
    most = min(128, _MOST_VALUES // heads.padded_dim)
    tokens = max(1, min(most // heads.padded_group, power_of_two(num_tokens)))
    return max(tokens, FEWEST_QUERIES // heads.padded_group)


def _kernel(spec: AttentionSpec, heads: Heads, page: int, tokens: int, has_sinks: bool, *refs: Ref) -> None:
    """One block of one row, and one head of keys."""
    ends, starts, counts, offsets, tables, q, cache, *rest = refs
    out = rest[-1]
    total = ends[len(starts) - 1]
    # The last blocks of a row see most, so that they come first.
    item, kv_head = total - 1 - pl.program_id(0), pl.program_id(1)

    @pl.when(item >= 0)
    def attend_to_block() -> None:
        row, block = find_owner(ends[...], item)
        query = jnp.arange(tokens * heads.padded_group, dtype=jnp.int32)
        token, in_group = block * tokens + query // heads.padded_group, query % heads.padded_group
        is_query = (token < counts[row]) & (in_group < heads.group)
        head = kv_head * heads.group + in_group
        rows = (offsets[row] + token) * (heads.kv_heads * heads.group) + head
        start = starts[row] + block * tokens
        first = 0 if spec.sliding_window is None else jnp.maximum(start - spec.sliding_window + 1, 0)
        end = starts[row] + jnp.minimum((block + 1) * tokens, counts[row])
        tiles = Tiles(cache, tables, row, kv_head, spec, heads, page)
        at = jnp.where(is_query, starts[row] + token, -1)
        queries = load_rows(q, rows, is_query, heads)
        softmax = tiles.attend(begin(len(query), heads.padded_dim), queries, at, Span(jnp.int32(first), end))
        total, result = softmax.total, softmax.out
        if has_sinks:
            sinks = plgpu.load(rest[0].at[jnp.where(is_query, head, 0)])
            _, total, shrink = add_sinks(softmax.top, total, sinks)
            result = result * shrink[:, None]
        # Queries that are none saw nothing.
        store_rows(out, rows, is_query, result / jnp.where(total > 0, total, 1.0)[:, None], heads)
