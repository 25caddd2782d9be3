"""Attention of single tokens, which decoding is: each reads its row's pages once, and its own key and value go in with them."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tpu_worker.lanes import LANES
from tpu_worker.platforms.metadata import AttentionSpec
from tpu_worker.platforms.tpu.layout import Cache, ScaledCache, group_of
from tpu_worker.platforms.tpu.pages import (
    LEAST,
    MASKED,
    Interpret,
    Pages,
    Ref,
    Scalar,
    Scales,
    Softmax,
    Span,
    choose_rows,
    each_item,
    finish,
    grid_of,
    in_main_memory,
    is_seen,
    pages_at_once,
    table_specs,
)


class Singles(NamedTuple):
    """Tokens that are attended to one by one, in the order of their positions where they are of one row: N of them, at most."""

    total: jax.Array  # [1] int32: how many there are
    places: jax.Array  # [N] int32: where in the operands each is
    rows: jax.Array  # [N] int32
    positions: jax.Array  # [N] int32


def attend(
    q: jax.Array,
    new: Cache,
    cache: Cache,
    singles: Singles,
    tables: jax.Array,
    sinks: jax.Array | None,
    spec: AttentionSpec,
    *,
    interpret: Interpret,
) -> tuple[jax.Array, Cache]:
    """Writes the rows of `singles` to the cache, which is changed in place, and attends.

    q [N, KH, M, operand], scaled, of the type that rows are multiplied as: the M queries of each token that read the same head of
    keys; new [N, KH, 1, width], of the cache's type; cache [NB, KH, page, width]; both with the scales of integers, of `new`
    [N, KH, 1, lanes], all lanes alike; tables [R, MB] int32; sinks [KH, M, LANES] float32. Returns the output, like q, of which
    only the places that `singles` names mean anything, and the cache.
    """
    rows, scales = cache if isinstance(cache, ScaledCache) else (cache, None)
    num_kv_heads, page, width = rows.shape[1:]
    run = pages_at_once(rows)
    num_prefetched = len(singles)
    coming = [new.rows, new.scales] if isinstance(new, ScaledCache) else [new]
    kept = in_main_memory([rows] if scales is None else [rows, scales], interpret)
    operands: list[jax.Array] = [tables[:, None], tables[:, None], q, *coming, *kept] + ([] if sinks is None else [sinks])
    anywhere = [pl.BlockSpec(memory_space=pl.ANY) for _ in kept]

    def at_place(shape: tuple[int, ...]) -> pl.BlockSpec:
        return pl.BlockSpec((1, *shape[1:]), lambda i, _, places, *__: (places[i], 0, 0, 0))

    in_specs = table_specs(lambda item, total, places, rows, positions: rows[item], tables.shape[1])  # noqa: ARG005
    in_specs += [at_place(q.shape), *(at_place(array.shape) for array in coming), *anywhere]
    if sinks is not None:
        in_specs.append(pl.BlockSpec(sinks.shape, lambda *_: (0, 0, 0)))
    scratch: list[Any] = [
        pltpu.VMEM((2, num_kv_heads, run * page, width), rows.dtype),
        pltpu.VMEM((2, num_kv_heads, group_of(rows.dtype), width), rows.dtype),
        pltpu.SemaphoreType.DMA((2,)),
        pltpu.SemaphoreType.DMA((2,)),
        pltpu.SMEM((3,), jnp.int32),
    ]
    if scales is not None:
        scratch += [pltpu.VMEM((*size, *scales.shape[1:]), jnp.int32) for size in ((2, run), (2,))]
    out, *written = pl.pallas_call(
        each_item(functools.partial(_kernel, spec, run, sinks is not None, scales is not None)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=num_prefetched,
            grid=(grid_of(singles.total),),
            in_specs=in_specs,
            out_specs=(at_place(q.shape), *anywhere),
            scratch_shapes=scratch,
        ),
        out_shape=tuple(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (q, *kept)),
        input_output_aliases={num_prefetched + 3 + len(kept) + i: 1 + i for i in range(len(kept))},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        interpret=interpret,
        name="attend_singles",
    )(*singles, *operands)
    return out, written[0] if scales is None else ScaledCache(*written)


# What is remembered from token to token: the half that comes next; of each slab, whether it is on its way to the cache.
_HALF, _PENDING = 0, 1


def _kernel(spec: AttentionSpec, run: int, has_sinks: bool, has_scales: bool, token: Scalar, *refs: Ref) -> None:
    total, _, rows, positions, table, following_table, q, new, *rest = refs
    new_scales = rest.pop(0) if has_scales else None
    del rest[: 2 if has_scales else 1]  # the cache, which is an output too
    sinks = rest.pop(0) if has_sinks else None
    out, cache = rest.pop(0), rest.pop(0)
    scales = rest.pop(0) if has_scales else None
    buffer, slabs, arrived, written, memory, *rest = rest
    scale_buffer, scale_slabs = rest if has_scales else (None, None)
    pages = Pages(cache, buffer, arrived, run, scales, scale_buffer)
    size = group_of(buffer.dtype)
    span = _span(table, positions[token], spec)
    num_runs = pages.num_runs(span)
    slab = token % 2

    @pl.when(token == 0)
    def forget() -> None:
        for i in range(3):
            memory[i] = 0

    def writes(which: Scalar) -> list[Ref]:
        block = table[0, 0, span.last // pages.page]
        group = pl.ds(pl.multiple_of(span.last % pages.page // size * size, size), size)
        found = [pltpu.make_async_copy(slabs.at[which], cache.at[block, :, group, :], written.at[which])]
        if scales is not None and scale_slabs is not None:
            found.append(pltpu.make_async_copy(scale_slabs.at[which], scales.at[block], written.at[which]))
        return found

    def finish_write(which: Scalar) -> None:
        @pl.when(memory[_PENDING + which] != 0)
        def wait_for_it() -> None:
            for write in writes(which):  # wherever they go: all are as large
                write.wait()
            memory[_PENDING + which] = 0

    def follows(token: Scalar) -> jax.Array:
        """Whether a token is of the same row as the one before it, and so reads what that one writes."""
        same: jax.Array = (token > 0) & (rows[token] == rows[jnp.maximum(token - 1, 0)])
        return same

    @pl.when((token == 0) | follows(token))
    def bring_first() -> None:
        finish_write(1 - slab)
        pages.start(span, 0, memory[_HALF])

    def one_run(index: Scalar, softmax: Softmax) -> Softmax:
        half = memory[_HALF]
        is_last = index == num_runs - 1

        @pl.when(~is_last)
        def bring_next() -> None:
            pages.start(span, index + 1, 1 - half)

        following = jnp.minimum(token + 1, total[0] - 1)

        @pl.when(is_last & (token + 1 < total[0]) & ~follows(following))
        def bring_first_of_next() -> None:
            pages.start(_span(following_table, positions[following], spec), 0, 1 - half)

        pages.wait(span, index, half)
        first = pages.first_position(span, index)

        @pl.when(is_last)
        def put_new() -> None:
            last = span.last - first
            group = pages.group(half, last // size)
            finish_write(slab)
            is_new = lax.broadcasted_iota(jnp.int32, group.shape, 1) == last % size
            slabs[slab] = choose_rows(is_new, new[0], group[...])
            group[...] = slabs[slab]
            if new_scales is not None and scale_buffer is not None and scale_slabs is not None:
                of_page = scale_buffer.at[half, last // pages.page]
                is_here = lax.broadcasted_iota(jnp.int32, of_page.shape, 2) == last % pages.page
                scale_slabs[slab] = jnp.where(is_here, new_scales[0], of_page[...])
                of_page[...] = scale_slabs[slab]
            for write in writes(slab):
                write.start()
            memory[_PENDING + slab] = 1
            pages.clear_after(half, last)

        memory[_HALF] = 1 - half
        at = first + lax.broadcasted_iota(jnp.int32, (1, 1, pages.positions), 2)
        seen = is_seen(at, span.last, spec)
        return _advance(softmax, q[0], buffer[half], pages.scales_of(half), seen, spec.soft_cap)

    start = _begin(None if sinks is None else sinks[...], q.shape[1:])
    out[0] = finish(lax.fori_loop(0, num_runs, one_run, start)).astype(out.dtype)

    @pl.when(token == total[0] - 1)
    def finish_all() -> None:
        finish_write(slab)
        finish_write(1 - slab)


def _span(table: Ref, position: Scalar, spec: AttentionSpec) -> Span:
    first = 0 if spec.sliding_window is None else jnp.maximum(position - spec.sliding_window + 1, 0)
    return Span(table, first, position)


def _begin(sinks: jax.Array | None, shape: tuple[int, ...]) -> Softmax:
    """Before any position. sinks [..., M, LANES]: as if a position with that score, and a value of zero, had been seen."""
    rows = (*shape[:-1], 1)
    if sinks is None:
        return Softmax(jnp.full(rows, MASKED, jnp.float32), jnp.zeros(rows, jnp.float32), jnp.zeros(shape, jnp.float32))
    return Softmax(sinks[..., :1], jnp.ones(rows, jnp.float32), jnp.zeros(shape, jnp.float32))


def _advance(
    softmax: Softmax, q: jax.Array, rows: jax.Array, scales: Scales | None, seen: jax.Array, soft_cap: float | None
) -> Softmax:
    """With some positions more: queries [..., M, operand], rows of the cache [..., S, width], seen [..., M, S] bool.

    Leading dimensions, the same in all, are heads. Rows of 8 bits are multiplied as bfloat16, which changes none, and scales are
    put to scores and weights.
    """
    operand = q.shape[-1]
    rows = rows.astype(q.dtype)
    precision = lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    is_shared = rows.shape[-1] == LANES
    keys, values = (rows, rows) if is_shared else (rows[..., :operand], rows[..., operand:])
    heads = tuple(range(q.ndim - 2))
    last = q.ndim - 1
    sides = (((last,), (last,)), (heads, heads))
    scores = lax.dot_general(q, keys, sides, precision=precision, preferred_element_type=jnp.float32)
    if scales is not None:
        scores *= scales.keys
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores * (1.0 / soft_cap))
    scores = jnp.where(seen, scores, MASKED)
    top = jnp.maximum(softmax.top, jnp.max(scores, axis=-1, keepdims=True))
    # Of a query that has seen nothing yet, of another row, the largest is a masked one: it must not weigh 1.
    weights = jnp.exp(scores - jnp.maximum(top, LEAST))
    shrink = jnp.exp(softmax.top - top)
    total = softmax.total * shrink + jnp.sum(weights, axis=-1, keepdims=True)
    if scales is not None:
        weights = jnp.where(seen, weights * scales.values, 0.0)
    sides = (((last,), (last - 1,)), (heads, heads))
    partial = lax.dot_general(weights.astype(rows.dtype), values, sides, precision=precision, preferred_element_type=jnp.float32)
    return Softmax(top, total, softmax.out * shrink + partial)
