"""Attention of single tokens, which decoding is: what each sees is split among several programs, and their parts are merged.

Flash-decoding (Dao, Haziza, Massa and Sizov 2023). One token alone would keep as many of the GPU's processors at work as there are
heads of keys. How often a token is split follows from how much it sees and from the size of the step, not from the tokens beside
it, so that these do not change its bits.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from tpu_worker.platforms.gpu.tiles import (
    FEWEST_QUERIES,
    LOWEST,
    STAGES,
    Heads,
    Layer,
    Ref,
    Scalar,
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

_PROGRAMS = 1024  # several for each processor of the largest GPUs: splits differ in size, and those that end early take another
_FEWEST_SPLITS = 8  # that one token may have, also in a large step: it may see much more than the others do
_MOST_SPLITS = 64
_FEWEST_POSITIONS = 256  # of a split: the result of one is written and read again, which takes as long as a few positions


class Singles(NamedTuple):
    """Tokens that are attended to one by one: N of them, at most."""

    total: jax.Array  # [1] int32: how many there are
    places: jax.Array  # [N] int32: which of the step's tokens each is
    rows: jax.Array  # [N] int32
    positions: jax.Array  # [N] int32


@dataclass(frozen=True, slots=True)
class Splits:
    """How what one token sees is cut."""

    most: int  # a power of two
    tile: int
    window: int | None

    def lengths(self, position: Scalar) -> tuple[Scalar, Scalar, Scalar]:
        """Of tokens at these positions: the first that each sees, how many positions a split has, and how many splits there are."""
        first = 0 * position if self.window is None else jnp.maximum(position - self.window + 1, 0)
        begins = first // self.tile * self.tile
        seen = position + 1 - begins
        # Of as many tiles as it takes to have no more splits than there may be.
        tiles = jnp.maximum(_ceil(_ceil(seen, self.most), self.tile), _FEWEST_POSITIONS // self.tile)
        return first, tiles * self.tile, _ceil(seen, tiles * self.tile)

    def span(self, position: Scalar, split: Scalar) -> Span:
        """The positions of one split."""
        first, length, _ = self.lengths(position)
        start = first // self.tile * self.tile + split * length
        return Span(jnp.maximum(start, first), jnp.minimum(start + length, position + 1))


def _ceil(size: Scalar, part: Scalar) -> Scalar:
    return (size + part - 1) // part


def most_splits(num_tokens: int, kv_heads: int) -> int:
    """Of one token, in a step of so many: a power of two."""
    return min(_MOST_SPLITS, max(_FEWEST_SPLITS, power_of_two(-(-_PROGRAMS // (num_tokens * kv_heads)))))


def attend(
    q: jax.Array,
    cache: jax.Array,
    singles: Singles,
    layer: Layer,
    *,
    out: jax.Array | None,
    interpret: bool,
) -> jax.Array:
    """The output [T * H, D] bfloat16 of a step of single tokens, zero for padding; or `out`, of another step, with the tokens of
    `singles` changed in place.

    q [T * H, D] bfloat16; cache [NB * KH * 2 * page, D], which holds the keys and values of the step already.
    """
    spec, heads, sinks = layer.spec, layer.heads, layer.sinks
    num_singles, num_heads = len(singles.places), heads.kv_heads * heads.group
    splits = Splits(most_splits(num_singles, heads.kv_heads), heads.tile, spec.sliding_window)
    is_there = jnp.arange(num_singles) < singles.total
    counts = jnp.where(is_there, splits.lengths(singles.positions)[2], 0)
    per_head = num_singles, num_heads, splits.most
    parts = pl.pallas_call(
        functools.partial(_attend_to_splits, spec, heads, splits, layer.page),
        grid=(min(_PROGRAMS, num_singles * heads.kv_heads * splits.most),),
        out_shape=(
            jax.ShapeDtypeStruct((num_singles * num_heads * splits.most, heads.dim), jnp.float32),
            jax.ShapeDtypeStruct(per_head, jnp.float32),
            jax.ShapeDtypeStruct(per_head, jnp.float32),
        ),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=STAGES),
        interpret=interpret,
        name="attend_splits",
    )(ends_of(counts), singles.places, singles.rows, singles.positions, layer.tables, q, cache)
    operands = [counts, singles.places, *parts] + ([] if sinks is None else [sinks]) + ([] if out is None else [out])
    merged: jax.Array = pl.pallas_call(
        functools.partial(_merge_splits, heads, splits, sinks is not None, out is None),
        grid=(num_singles, num_heads),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        input_output_aliases={} if out is None else {len(operands) - 1: 0},
        compiler_params=plgpu.CompilerParams(num_warps=max(1, min(8, splits.most * heads.padded_dim // 1024)), num_stages=1),
        interpret=interpret,
        name="merge_splits",
    )(*operands)
    return merged


def _attend_to_splits(spec: AttentionSpec, heads: Heads, splits: Splits, page: int, *refs: Ref) -> None:
    """Each program takes one split of one head of keys after the other, as many as there are programs apart."""
    ends_ref, places, rows, positions, tables, q, cache, outs, tops, totals = refs
    ends = ends_ref[...]
    num_splits = ends_ref[len(places) - 1]
    program, num_programs = pl.program_id(0), pl.num_programs(0)
    num_queries = max(FEWEST_QUERIES, heads.padded_group)
    query = jnp.arange(num_queries, dtype=jnp.int32)
    is_query = query < heads.group

    def one_item(index: Scalar, _: None) -> None:
        item = program + index * num_programs
        kv_head = item % heads.kv_heads
        single, split = find_owner(ends, item // heads.kv_heads)
        position = positions[single]
        head = kv_head * heads.group + query
        num_heads = heads.kv_heads * heads.group
        queries = load_rows(q, places[single] * num_heads + head, is_query, heads)
        tiles = Tiles(cache, tables, rows[single], kv_head, spec, heads, page)
        at = jnp.where(is_query, position, -1)
        softmax = tiles.attend(begin(num_queries, heads.padded_dim), queries, at, splits.span(position, split))
        where = jnp.broadcast_to(single, head.shape), head, jnp.broadcast_to(split, head.shape)
        store_rows(outs, (single * num_heads + head) * splits.most + split, is_query, softmax.out, heads)
        plgpu.store(tops.at[where], softmax.top, mask=is_query)
        plgpu.store(totals.at[where], softmax.total, mask=is_query)

    items = num_splits * heads.kv_heads
    lax.fori_loop(0, _ceil(jnp.maximum(items - program, 0), num_programs), one_item, None)


def _merge_splits(heads: Heads, splits: Splits, has_sinks: bool, is_alone: bool, *refs: Ref) -> None:
    """One head of queries of one token. is_alone: what is no token is one of the step's too, of padding."""
    counts, places, outs, tops, totals, *rest = refs
    out = rest[-1]
    single, head = pl.program_id(0), pl.program_id(1)
    num_heads = heads.kv_heads * heads.group
    count = counts[single]

    @pl.when((count > 0) | is_alone)
    def merge() -> None:
        split = jnp.arange(splits.most, dtype=jnp.int32)
        is_there = split < count
        where = jnp.broadcast_to(single, split.shape), jnp.broadcast_to(head, split.shape), split
        of_splits = plgpu.load(tops.at[where], mask=is_there, other=LOWEST)
        top = jnp.max(of_splits)
        weights = jnp.where(is_there, jnp.exp2(of_splits - top), 0.0)
        total = jnp.sum(weights * plgpu.load(totals.at[where], mask=is_there, other=0.0))
        rows = load_rows(outs, (single * num_heads + head) * splits.most + split, is_there, heads)
        merged = jnp.sum(rows * weights[:, None], axis=0)
        if has_sinks:
            _, total, shrink = add_sinks(top, total, rest[0][head])
            merged = merged * shrink
        row = jnp.broadcast_to(places[single] * num_heads + head, (1,))
        store_rows(out, row, row >= 0, (merged / jnp.where(total > 0, total, 1.0))[None, :], heads)
