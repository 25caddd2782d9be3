"""Paged attention for TPUs, in Pallas: the work of a step, listed once for all layers, and the kernels that do it.

A cache is [blocks, KV heads, page, width], a key and its value in one row (`layout`), so that a block of all heads is one piece of
memory whose tiles are full whatever the number of heads. Single tokens are read and written by one kernel (`singles`); rows with
several write their pages first (`writes`), and then attend in blocks (`chunks`). All of them change the cache where it lies.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tpu_worker.lanes import LANES, fill_lanes
from tpu_worker.platforms.cache_types import CacheType
from tpu_worker.platforms.metadata import AttentionMetadata, AttentionSpec
from tpu_worker.platforms.tpu import chunks, singles, writes
from tpu_worker.platforms.tpu.chunks import Chunks
from tpu_worker.platforms.tpu.heads import Heads, Turns
from tpu_worker.platforms.tpu.layout import Cache, RowLayout, ScaledCache
from tpu_worker.platforms.tpu.pages import Interpret
from tpu_worker.platforms.tpu.singles import Singles
from tpu_worker.platforms.tpu.writes import Writes

_MOST_QUERIES = 512  # of a head of keys in a block of tokens …
_MOST_BYTES = 8 << 20  # … and, of all, of queries, output and softmax in vector memory


class Prepared(NamedTuple):
    """Of a step of T tokens and R rows."""

    positions: jax.Array  # [T] int32
    real: jax.Array  # [T] bool: not padding
    tables: jax.Array  # [R, MB] int32
    singles: Singles  # tokens; where T > R, the first ones of rows
    several: "Several | None"  # None where T = R: then all are single


class Several(NamedTuple):
    """Of a step whose rows may have several tokens."""

    writes: Writes
    starts: jax.Array  # [R] int32
    counts: jax.Array  # [R] int32: of rows with several, else 0
    offsets: jax.Array  # [R + 1] int32
    is_single: jax.Array  # [R] bool


def make_caches(
    num_layers: int, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int, *, kept: CacheType = "bfloat16"
) -> list[Cache]:
    """For each layer [num_blocks, num_kv_heads, block_size, width] of this type, and the scales of integers."""
    layout = RowLayout(head_dim, kept)
    return [layout.make(num_blocks, block_size, num_kv_heads) for _ in range(num_layers)]


def prepare(meta: AttentionMetadata, num_tokens: int, block_size: int) -> Prepared:
    """`platform.Prepare`. A step with as many tokens as rows is taken for decoding: rows of several are attended to one by one."""
    row, positions, real = meta.locate(num_tokens)
    num_rows = meta.starts.shape[0]
    if num_tokens == num_rows:
        every = Singles(_count(real), jnp.arange(num_tokens, dtype=jnp.int32), row, positions)
        return Prepared(positions, real, meta.block_tables, every, None)
    is_single = meta.counts == 1
    first = jnp.argsort(~is_single, stable=True).astype(jnp.int32)
    some = Singles(_count(is_single), first, first, meta.starts[first])
    counts = jnp.where(is_single, 0, meta.counts)
    before = meta.starts // block_size
    num_pages = jnp.where(counts > 0, (meta.starts + counts - 1) // block_size - before + 1, 0)
    # A row of n > 1 tokens reaches into (n - 2) // block_size + 2 pages at most.
    total, rows, pages = _enumerate(before, num_pages, num_tokens // block_size + 2 * num_rows)
    blocks = meta.block_tables.at[rows, pages].get(mode="clip")
    blocks = jnp.where(jnp.arange(len(rows)) < total, blocks, 0)  # of an item that is none, a block that is there
    listed = Writes(total, rows, pages, blocks, meta.starts, meta.offsets)
    several = Several(listed, meta.starts, counts, meta.offsets, is_single)
    return Prepared(positions, real, meta.block_tables, some, several)


def _count(flags: jax.Array) -> jax.Array:
    return jnp.sum(flags, dtype=jnp.int32)[None]


def _enumerate(first: jax.Array, counts: jax.Array, most: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """How many there are [1], and, for each of row r's counts[r] numbers from first[r] on, the row and the number: [most] each."""
    ends = jnp.cumsum(counts, dtype=jnp.int32)
    items = jnp.arange(most, dtype=jnp.int32)
    rows = jnp.minimum(jnp.searchsorted(ends, items, side="right", method="compare_all"), len(counts) - 1).astype(jnp.int32)
    return ends[-1:], rows, first[rows] + items - (ends - counts)[rows]


@dataclass(frozen=True, slots=True)
class Attend:
    """`platform.Attend`."""

    interpret: Interpret  # the kernels are run step by step on whatever is there, to see what they compute
    kept: CacheType = "bfloat16"  # keys and values

    def __call__(
        self,
        qkv: jax.Array,
        cache: Cache,
        prepared: Prepared,
        rope: jax.Array | None,
        spec: AttentionSpec,
        sinks: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Queries are rounded to bfloat16, unless the cache is float32, and so is the output; keys and values to what the cache is
        of. Donate it, or it is copied."""
        num_kv_heads = _rows_of(cache).shape[1]
        num_heads = qkv.shape[1] // spec.head_dim - 2 * num_kv_heads
        heads = Heads(num_heads, num_kv_heads, spec, RowLayout(spec.head_dim, self.kept), self.interpret)
        qkv = heads.spread(spec.scale_queries(qkv, prepared.positions, num_heads))
        turns = heads.turns(rope, prepared.positions)
        scores = None if sinks is None else sinks.reshape(num_kv_heads, heads.group)
        if prepared.several is None:
            out, cache = self._singles(heads, qkv, turns, cache, prepared, scores)
        else:
            out, cache = self._mixed(heads, qkv, turns, cache, prepared, prepared.several, scores)
        return jnp.where(prepared.real[:, None], out, 0.0), cache

    def _singles(
        self, heads: Heads, qkv: jax.Array, turns: Turns | None, cache: Cache, prepared: Prepared, sinks: jax.Array | None
    ) -> tuple[jax.Array, Cache]:
        """qkv [N, W], sinks [KH, G] -> (out [N, H * D] float32, cache)."""
        q, new = heads.split_rows(qkv, turns)
        rows, scales = heads.layout.keep(new)
        ours: Cache = rows
        if scales is not None and isinstance(cache, ScaledCache):
            ours = ScaledCache(rows, jnp.broadcast_to(scales[..., None], (*scales.shape, cache.scales.shape[-1])))
        scores = None if sinks is None else _over_lanes(jnp.pad(sinks, ((0, 0), (0, heads.queries - heads.group))))
        out, cache = singles.attend(q, ours, cache, prepared.singles, prepared.tables, scores, heads.spec, interpret=self.interpret)
        return heads.join_rows(out), cache

    def _mixed(
        self,
        heads: Heads,
        qkv: jax.Array,
        turns: Turns | None,
        cache: Cache,
        prepared: Prepared,
        several: Several,
        sinks: jax.Array | None,
    ) -> tuple[jax.Array, Cache]:
        """qkv [T, W], sinks [KH, G] -> (out [T, H * D] float32, cache)."""
        num_tokens = qkv.shape[0]
        tokens = tokens_of_block(num_tokens, heads.num_kv_heads, heads.group, heads.layout)
        page = _rows_of(cache).shape[2]
        room = math.lcm(tokens, page)
        q, new = heads.split_columns(qkv, turns, -(-num_tokens // room) * room)
        cache = writes.write(_by_page(heads.layout.keep(new), page), cache, several.writes, interpret=self.interpret)
        first = several.offsets[:-1]
        of_rows = None if turns is None else (turns[0].at[first].get(mode="clip"), turns[1].at[first].get(mode="clip"))
        alone, cache = self._singles(heads, qkv.at[first].get(mode="clip"), of_rows, cache, prepared, sinks)
        out = chunks.attend(
            q,
            cache,
            _list_chunks(several, tokens, q.shape[2] // tokens),
            prepared.tables,
            None if sinks is None else jnp.repeat(sinks.astype(jnp.float32), tokens, axis=1)[:, None],
            heads.spec,
            tokens=tokens,
            interpret=self.interpret,
        )
        where = jnp.where(several.is_single, first, num_tokens)  # outside: dropped
        return heads.join_columns(out, num_tokens).at[where].set(alone, mode="drop"), cache


def _rows_of(cache: Cache) -> jax.Array:
    return cache.rows if isinstance(cache, ScaledCache) else cache


def _by_page(new: tuple[jax.Array, jax.Array | None], page: int) -> Cache:
    """What a step writes, whole pages [KH, T, width], and scales [KH, T], as `writes.write` takes it."""
    rows, scales = new
    if scales is None:
        return rows
    pages = scales.reshape(len(scales), -1, page).swapaxes(0, 1)
    return ScaledCache(rows, jnp.pad(pages, ((0, 0), (0, 0), (0, fill_lanes(page) - page)))[:, :, None])


def tokens_of_block(num_tokens: int, num_kv_heads: int, group: int, layout: RowLayout) -> int:
    """A power of two: whole tiles, and no more queries than there is room for."""
    # Queries and output come and go while others are there; the softmax is float32.
    bytes_of_query = layout.operand * (4 * layout.operand_dtype.itemsize + 4)
    most = min(_MOST_QUERIES, _MOST_BYTES // (num_kv_heads * bytes_of_query)) // group
    tokens = 16
    while tokens * 2 <= min(most, num_tokens):
        tokens *= 2
    return tokens


def _list_chunks(several: Several, tokens: int, num_blocks: int) -> Chunks:
    first, last = several.offsets[:-1] // tokens, (several.offsets[1:] - 1) // tokens
    counts = jnp.where(several.counts > 0, last - first + 1, 0)
    count, rows, blocks = _enumerate(first, counts, num_blocks + len(counts))
    return Chunks(count, jnp.minimum(blocks, num_blocks - 1), rows, several.starts, several.offsets)


def _over_lanes(scores: jax.Array) -> jax.Array:
    """[KH, M] as [KH, M, LANES] float32."""
    return jnp.broadcast_to(scores.astype(jnp.float32)[..., None], (*scores.shape, LANES))
