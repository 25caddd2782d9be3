"""Attention of rows with several tokens, which prompts are: the tokens of a block share what is read of their row.

Blocks are cut out of the step as it is, so one may hold the end of a row, all of others and the beginning of one more. What is to
be done is therefore a list of pairs of a block and a row; whatever of the block is of other rows is masked.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tpu_worker.platforms.metadata import AttentionSpec
from tpu_worker.platforms.tpu.layout import LANES, Cache, ScaledCache
from tpu_worker.platforms.tpu.pages import (
    Interpret,
    Pages,
    Ref,
    Scalar,
    Scales,
    Softmax,
    Span,
    advance,
    begin,
    each_item,
    finish,
    grid_of,
    in_main_memory,
    is_seen,
    pages_at_once,
    table_specs,
)


class Chunks(NamedTuple):
    """Pairs of a block and a row that has tokens in it, by row and so by block: N of them, at most."""

    total: jax.Array  # [1] int32: how many there are
    blocks: jax.Array  # [N] int32
    rows: jax.Array  # [N] int32
    starts: jax.Array  # [R] int32, as in `AttentionMetadata`
    offsets: jax.Array  # [R + 1] int32, likewise


def attend(
    q: jax.Array,
    cache: Cache,
    chunks: Chunks,
    tables: jax.Array,
    sinks: jax.Array | None,
    spec: AttentionSpec,
    *,
    tokens: int,
    interpret: Interpret,
) -> jax.Array:
    """The output of queries that were scaled, both [KH, G, T, operand] of the type that rows are multiplied as.

    T is whole blocks of `tokens`; of a block the G queries of each head of keys come one after the other, M = G * tokens. cache
    [NB, KH, page, width] holds the keys and values of the step already; tables [R, MB] int32; sinks [KH, M, LANES] float32. Only
    what comes out for tokens of the rows in `chunks` means anything.
    """
    num_kv_heads, group, _, operand = q.shape
    num_queries = group * tokens
    rows, scales = cache if isinstance(cache, ScaledCache) else (cache, None)
    page, width = rows.shape[2:]
    run = pages_at_once(rows)
    kept = in_main_memory([rows] if scales is None else [rows, scales], interpret)
    operands: list[jax.Array] = [tables[:, None], tables[:, None], q, *kept] + ([] if sinks is None else [sinks])
    block = pl.BlockSpec((num_kv_heads, group, tokens, operand), lambda i, _, blocks, *__: (0, 0, blocks[i], 0))
    in_specs = table_specs(lambda item, total, blocks, rows, *_: rows[item], tables.shape[1])  # noqa: ARG005
    in_specs += [block, *(pl.BlockSpec(memory_space=pl.ANY) for _ in kept)]
    if sinks is not None:
        in_specs.append(pl.BlockSpec(sinks.shape, lambda *_: (0, 0, 0)))
    scratch: list[Any] = [
        pltpu.VMEM((2, num_kv_heads, run * page, width), rows.dtype),
        pltpu.VMEM((num_kv_heads, num_queries, LANES), jnp.float32),
        pltpu.VMEM((num_kv_heads, num_queries, LANES), jnp.float32),
        pltpu.VMEM((num_kv_heads, num_queries, operand), jnp.float32),
        pltpu.SemaphoreType.DMA((2,)),
        pltpu.SMEM((1,), jnp.int32),
    ]
    if scales is not None:
        scratch.append(pltpu.VMEM((2, run, *scales.shape[1:]), jnp.int32))
        scratch += [pltpu.VMEM((num_kv_heads, 1, run * page), jnp.float32) for _ in range(2)]
    out: jax.Array = pl.pallas_call(
        each_item(functools.partial(_kernel, spec, run, tokens, sinks is not None, scales is not None)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(chunks),
            grid=(grid_of(chunks.total),),
            in_specs=in_specs,
            out_specs=block,
            scratch_shapes=scratch,
        ),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        interpret=interpret,
        name="attend_chunks",
    )(*chunks, *operands)
    return out


def _kernel(spec: AttentionSpec, run: int, tokens: int, has_sinks: bool, has_scales: bool, item: Scalar, *refs: Ref) -> None:
    """tokens: of a block."""
    total, blocks, rows, starts, offsets, table, following_table, q, cache, *rest = refs
    scales = rest.pop(0) if has_scales else None
    sinks = rest.pop(0) if has_sinks else None
    out, buffer, tops, totals, outs, arrived, memory, *rest = rest
    scale_buffer, key_scales, value_scales = rest if has_scales else (None, None, None)
    pages = Pages(cache, buffer, arrived, run, scales, scale_buffer)
    num_kv_heads, num_queries, operand = outs.shape
    block, row = blocks[item], rows[item]

    def span_of(item: Scalar, table: Ref) -> Span:
        row = rows[item]
        first = jnp.maximum(blocks[item] * tokens, offsets[row])  # of its tokens in the block …
        last = jnp.minimum((blocks[item] + 1) * tokens, offsets[row + 1]) - 1  # … to here
        to_position = starts[row] - offsets[row]
        seen = 0 if spec.sliding_window is None else jnp.maximum(first + to_position - spec.sliding_window + 1, 0)
        return Span(table, seen, last + to_position)

    span = span_of(item, table)
    num_runs = pages.num_runs(span)

    @pl.when(item == 0)
    def bring_first() -> None:
        memory[0] = 0
        pages.start(span, 0, 0)

    @pl.when((item == 0) | (blocks[jnp.maximum(item - 1, 0)] != block))
    def empty_softmax() -> None:
        empty = begin(None if sinks is None else sinks[...], outs.shape)
        tops[...], totals[...] = (jnp.broadcast_to(x, tops.shape) for x in (empty.top, empty.total))
        outs[...] = empty.out

    # Of each query its position; before all others where it is of another row.
    token = block * tokens + lax.broadcasted_iota(jnp.int32, (num_queries, 1), 0) % tokens
    is_here = (token >= offsets[row]) & (token < offsets[row + 1])
    queries = jnp.where(is_here, token + starts[row] - offsets[row], -1)

    def one_run(index: Scalar, half: Scalar) -> Scalar:
        is_last = index == num_runs - 1

        @pl.when(~is_last)
        def bring_next() -> None:
            pages.start(span, index + 1, 1 - half)

        @pl.when(is_last & (item + 1 < total[0]))
        def bring_first_of_next() -> None:
            pages.start(span_of(jnp.minimum(item + 1, total[0] - 1), following_table), 0, 1 - half)

        pages.wait(span, index, half)
        first = pages.first_position(span, index)

        @pl.when(is_last)
        def clear() -> None:
            pages.clear_after(half, span.last - first)

        at = first + lax.broadcasted_iota(jnp.int32, (1, pages.positions), 1)
        seen = is_seen(at, queries, spec)
        if (of_run := pages.scales_of(half)) is not None and key_scales is not None and value_scales is not None:
            key_scales[...], value_scales[...] = of_run

        def one_head(head: Scalar, _: None) -> None:
            softmax = Softmax(tops[head, :, :1], totals[head, :, :1], outs[head])
            of_head = None
            if key_scales is not None and value_scales is not None:
                of_head = Scales(key_scales[head], value_scales[head])
            softmax = advance(softmax, q[head].reshape(num_queries, operand), buffer[half, head], of_head, seen, spec.soft_cap)
            tops[head] = jnp.broadcast_to(softmax.top, (num_queries, LANES))
            totals[head] = jnp.broadcast_to(softmax.total, (num_queries, LANES))
            outs[head] = softmax.out

        lax.fori_loop(0, num_kv_heads, one_head, None)
        return 1 - half

    memory[0] = lax.fori_loop(0, num_runs, one_run, memory[0])

    @pl.when((item == total[0] - 1) | (blocks[jnp.minimum(item + 1, total[0] - 1)] != block))
    def write_out() -> None:
        softmax = Softmax(tops[:, :, :1], totals[:, :, :1], outs[...])
        out[...] = finish(softmax).reshape(out.shape).astype(out.dtype)
