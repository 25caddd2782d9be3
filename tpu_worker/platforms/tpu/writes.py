"""Writing the keys and values of prompts to the cache, page by page, in place.

A page begins anywhere in the step, and tiles of memory can only be written whole. So each page's new rows are put in their places
by a product with ones and zeros, which moves them without a change, and what the page held stays around them.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tpu_worker.platforms.tpu.pages import Interpret, Ref, Scalar, grid_of

_MOST_BYTES = 512 << 10  # of a page at once: with what is coming and going there are eight of them


class Writes(NamedTuple):
    """Pages that rows write to, each once: N of them, at most."""

    total: jax.Array  # [1] int32: how many there are
    rows: jax.Array  # [N] int32
    pages: jax.Array  # [N] int32: which of its row
    blocks: jax.Array  # [N] int32: where that lies
    starts: jax.Array  # [R] int32, as in `AttentionMetadata`
    offsets: jax.Array  # [R + 1] int32, likewise


def write(new: jax.Array, cache: jax.Array, writes: Writes, *, interpret: Interpret) -> jax.Array:
    """The cache [NB, KH, page, width], changed in place, with the rows new [KH, T, width] of the step's tokens.

    T is filled up to whole pages.
    """
    num_kv_heads, page, width = cache.shape[1:]
    most = new.shape[1] // page - 1
    heads = _heads_at_once(cache)
    num_prefetched = len(writes)

    def source(behind: int) -> pl.BlockSpec:
        def where(item: Scalar, part: Scalar, *scalars: Ref) -> tuple[Scalar, ...]:
            _, rows, pages, _, starts, offsets = scalars
            return part, jnp.minimum(_first_block(page, rows[item], pages[item], starts, offsets) + behind, most), 0

        return pl.BlockSpec((heads, page, width), where)

    def target(item: Scalar, part: Scalar, *scalars: Ref) -> tuple[Scalar, ...]:
        return scalars[3][item], part, 0, 0

    written: jax.Array = pl.pallas_call(
        functools.partial(_kernel, page),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=num_prefetched,
            grid=(grid_of(writes.total), num_kv_heads // heads),
            in_specs=[source(0), source(1), pl.BlockSpec((1, heads, page, width), target)],
            out_specs=pl.BlockSpec((1, heads, page, width), target),
        ),
        out_shape=jax.ShapeDtypeStruct(cache.shape, cache.dtype),
        input_output_aliases={num_prefetched + 2: 0},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary", "arbitrary")),
        interpret=interpret,
        name="write_pages",
    )(*writes, new, new, cache)
    return written


def _heads_at_once(cache: jax.Array) -> int:
    """How many heads' parts of a page, of a cache [NB, KH, page, width], are in vector memory together: a divisor of KH."""
    _, num_kv_heads, page, width = cache.shape
    most = max(1, _MOST_BYTES // (page * width * cache.dtype.itemsize))
    return max(heads for heads in range(1, num_kv_heads + 1) if num_kv_heads % heads == 0 and heads <= most)


def _first_block(page: int, row: Scalar, index: Scalar, starts: Ref, offsets: Ref) -> Scalar:
    """Which block of as many tokens as a page has holds the first token of a page of a row; the others are there or in the next."""
    return (offsets[row] + jnp.maximum(index * page - starts[row], 0)) // page


def _kernel(page: int, *refs: Ref) -> None:
    total, rows, indices, _, starts, offsets, new, following, old, out = refs
    item = pl.program_id(0)
    row, index = rows[item], indices[item]
    first = _first_block(page, row, index, starts, offsets) * page  # token
    # By position of the page: its token, counted from there.
    token = index * page + lax.broadcasted_iota(jnp.int32, (page, 1), 0) - starts[row] + offsets[row]
    is_new = (token >= offsets[row]) & (token < offsets[row + 1]) & (item < total[0])
    comes_from = jnp.where(is_new, token - first, -1)

    def place(part: Ref, behind: int, head: Scalar) -> jax.Array:
        """What comes of one block, [page, width]."""
        at = behind + lax.broadcasted_iota(jnp.int32, (page, 1), 0)
        is_mine = (first + at >= offsets[row]) & (first + at < offsets[row + 1])  # of another row it may be NaN
        rows = jnp.where(is_mine, part[head], jnp.zeros((), part.dtype))
        moves = (comes_from == behind + lax.broadcasted_iota(jnp.int32, (1, page), 1)).astype(part.dtype)
        return jnp.dot(moves, rows, preferred_element_type=jnp.float32)

    def one_head(head: Scalar, _: None) -> None:
        moved = place(new, 0, head) + place(following, page, head)
        out[0, head] = jnp.where(is_new, moved.astype(out.dtype), old[0, head])

    lax.fori_loop(0, out.shape[1], one_head, None)
