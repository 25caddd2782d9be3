"""Writing the keys and values of prompts to the cache, page by page, in place.

A page begins anywhere in the step, and tiles of memory can only be written whole. So each page's new rows are put in their places
by a product with ones and zeros, which moves them without a change, and what the page held stays around them.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tpu_worker.platforms.tpu.layout import Cache, ScaledCache, join_scales, split_scales
from tpu_worker.platforms.tpu.pages import Interpret, Ref, Scalar, choose_rows, grid_of, in_main_memory

_MOST_BYTES = 512 << 10  # of a page at once: with what is coming and going there are eight of them
_MOST_UNROLLED = 8  # heads: one is multiplied while another is written


class Writes(NamedTuple):
    """Pages that rows write to, each once: N of them, at most."""

    total: jax.Array  # [1] int32: how many there are
    rows: jax.Array  # [N] int32
    pages: jax.Array  # [N] int32: which of its row
    blocks: jax.Array  # [N] int32: where that lies
    starts: jax.Array  # [R] int32, as in `AttentionMetadata`
    offsets: jax.Array  # [R + 1] int32, likewise


def write(new: Cache, cache: Cache, writes: Writes, *, interpret: Interpret) -> Cache:
    """The cache [NB, KH, page, width], changed in place, with the rows new [KH, T, width] of the step's tokens.

    T is filled up to whole pages. Scales of integers come with both, the new ones as of as many pages, [T / page, KH, 1, lanes].
    """
    rows, scales = cache if isinstance(cache, ScaledCache) else (cache, None)
    new_rows, new_scales = new if isinstance(new, ScaledCache) else (new, None)
    num_kv_heads, page, width = rows.shape[1:]
    most = new_rows.shape[1] // page - 1
    heads = _heads_at_once(rows)
    num_prefetched = len(writes)

    def block_of(behind: int, item: Scalar, scalars: tuple[Ref, ...]) -> Scalar:
        _, rows, pages, _, starts, offsets = scalars
        return jnp.minimum(_first_block(page, rows[item], pages[item], starts, offsets) + behind, most)

    def source(behind: int) -> pl.BlockSpec:
        return pl.BlockSpec((heads, page, width), lambda item, part, *scalars: (part, block_of(behind, item, scalars), 0))

    def scale_source(behind: int) -> pl.BlockSpec:
        assert new_scales is not None
        shape = (1, heads, *new_scales.shape[2:])
        return pl.BlockSpec(shape, lambda item, part, *scalars: (block_of(behind, item, scalars), part, 0, 0))

    def target(item: Scalar, part: Scalar, *scalars: Ref) -> tuple[Scalar, ...]:
        return scalars[3][item], part, 0, 0

    operands, in_specs = [new_rows, new_rows], [source(0), source(1)]
    kept, out_specs = in_main_memory([rows], interpret), [pl.BlockSpec((1, heads, page, width), target)]
    if scales is not None and new_scales is not None:
        operands, in_specs = [*operands, new_scales, new_scales], [*in_specs, scale_source(0), scale_source(1)]
        kept, out_specs = (
            in_main_memory([rows, scales], interpret),
            [*out_specs, pl.BlockSpec((1, heads, *scales.shape[2:]), target)],
        )
    first = num_prefetched + len(operands)
    written = pl.pallas_call(
        functools.partial(_kernel, page, scales is not None),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=num_prefetched,
            grid=(grid_of(writes.total), num_kv_heads // heads),
            in_specs=in_specs + out_specs,
            out_specs=out_specs,
        ),
        out_shape=[jax.ShapeDtypeStruct(array.shape, array.dtype) for array in kept],
        input_output_aliases={first + i: i for i in range(len(kept))},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary", "arbitrary")),
        interpret=interpret,
        name="write_pages",
    )(*writes, *operands, *kept)
    return written[0] if scales is None else ScaledCache(*written)


def _heads_at_once(cache: jax.Array) -> int:
    """How many heads' parts of a page, of a cache [NB, KH, page, width], are in vector memory together: a divisor of KH."""
    _, num_kv_heads, page, width = cache.shape
    most = max(1, _MOST_BYTES // (page * width * max(2, cache.dtype.itemsize)))
    return max(heads for heads in range(1, num_kv_heads + 1) if num_kv_heads % heads == 0 and heads <= most)


def _first_block(page: int, row: Scalar, index: Scalar, starts: Ref, offsets: Ref) -> Scalar:
    """Which block of as many tokens as a page has holds the first token of a page of a row; the others are there or in the next."""
    return (offsets[row] + jnp.maximum(index * page - starts[row], 0)) // page


def _kernel(page: int, has_scales: bool, *refs: Ref) -> None:
    total, rows, indices, _, starts, offsets, new, following, *rest = refs
    new_scales = (rest.pop(0), rest.pop(0)) if has_scales else None
    old, *rest = rest
    old_scales = rest.pop(0) if has_scales else None
    out, out_scales = (*rest, None)[:2]
    item = pl.program_id(0)
    row, index = rows[item], indices[item]
    first = _first_block(page, row, index, starts, offsets) * page  # token
    operand = jnp.float32 if old.dtype == jnp.float32 else jnp.bfloat16
    precision = lax.Precision.HIGHEST if old.dtype == jnp.float32 else None

    def tokens_of_page(axis: int) -> tuple[jax.Array, jax.Array]:
        """By position of the page, along an axis: whether it is written to, and which token, counted from the first, it is."""
        shape = (page, 1) if axis == 0 else (1, page)
        token = index * page + lax.broadcasted_iota(jnp.int32, shape, axis) - starts[row] + offsets[row]
        is_new = (token >= offsets[row]) & (token < offsets[row + 1]) & (item < total[0])
        return is_new, jnp.where(is_new, token - first, -1)

    def is_mine(axis: int) -> jax.Array:
        """Of the tokens of both blocks, along an axis: of another row's numbers some may be NaN."""
        at = first + lax.broadcasted_iota(jnp.int32, (2 * page, 1) if axis == 0 else (1, 2 * page), axis)
        here: jax.Array = (at >= offsets[row]) & (at < offsets[row + 1])
        return here

    is_new, comes_from = tokens_of_page(0)
    has_come = is_mine(0)
    # Which token of the blocks goes to which position, [page (to), 2 * page (from)].
    moves = (comes_from == lax.broadcasted_iota(jnp.int32, (1, 2 * page), 1)).astype(operand)

    def place_scales(head: Scalar) -> jax.Array:
        """What comes of the scales of both blocks, [1, page] pairs."""
        assert new_scales is not None
        pairs = jnp.concatenate([part[0, head, :, :page] for part in new_scales], axis=1)
        both = (jnp.where(is_mine(1), scales, 0.0).astype(operand) for scales in split_scales(pairs))
        sides = (((1,), (1,)), ((), ()))
        return join_scales(*(lax.dot_general(one, moves, sides, preferred_element_type=jnp.float32) for one in both))

    def one_head(head: Scalar, _: None) -> None:
        rows = jnp.concatenate([new[head], following[head]]).astype(operand)
        rows = jnp.where(has_come, rows, jnp.zeros((), operand))
        moved = jnp.dot(moves, rows, precision=precision, preferred_element_type=jnp.float32)
        out[0, head] = choose_rows(is_new, moved.astype(out.dtype), old[0, head])
        if old_scales is not None and out_scales is not None:
            before = old_scales[0, head]
            out_scales[0, head] = before
            out_scales[0, head, :, :page] = jnp.where(tokens_of_page(1)[0], place_scales(head), before[:, :page])

    lax.fori_loop(0, out.shape[1], one_head, None, unroll=heads_unrolled(out.shape[1]))


def heads_unrolled(num_kv_heads: int) -> int:
    """How many heads of keys a pass of the loop over them has."""
    return math.gcd(num_kv_heads, _MOST_UNROLLED)
