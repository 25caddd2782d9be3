"""Attention of rows with several tokens, which prompts are: the tokens of a block share what is read of their row.

Blocks are cut out of the step as it is, so one may hold the end of a row, all of others and the beginning of one more. What is to
be done is therefore a list of pairs of a block and a row; whatever of the block is of other rows is masked.

Within the kernel queries lie along lanes, and positions, like the features of the output, along rows: the softmax then goes through
whole registers from one to the next, what there is of it for each query is one row, and only V and the output are turned round.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tpu_worker.lanes import LANES
from tpu_worker.platforms.metadata import AttentionSpec
from tpu_worker.platforms.tpu.heads import LOG2_E
from tpu_worker.platforms.tpu.layout import Cache, ScaledCache
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
    each_item,
    finish,
    grid_of,
    in_main_memory,
    is_seen,
    pages_at_once,
    table_specs,
)

MOST_POSITIONS = 256  # of a run: what few queries see of one is computed for all
_MOST_AT_ONCE = 1024  # queries, of several heads: one is multiplied while another's weights are computed


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
    """The output of queries that were scaled, by LOG2_E too, both [KH, G, T, operand] of the type that rows are multiplied as.

    T is whole blocks of `tokens`; of a block the G queries of each head of keys come one after the other, M = G * tokens. cache
    [NB, KH, page, width] holds the keys and values of the step already; tables [R, MB] int32; sinks [KH, 1, M] float32. Only
    what comes out for tokens of the rows in `chunks` means anything.
    """
    num_kv_heads, group, _, operand = q.shape
    num_queries = group * tokens
    rows, scales = cache if isinstance(cache, ScaledCache) else (cache, None)
    page, width = rows.shape[2:]
    run = pages_at_once(rows, MOST_POSITIONS)
    num_values = width // 2
    kept = in_main_memory([rows] if scales is None else [rows, scales], interpret)
    operands: list[jax.Array] = [tables[:, None], tables[:, None], q, *kept] + ([] if sinks is None else [sinks])
    block = pl.BlockSpec((num_kv_heads, group, tokens, operand), lambda i, _, blocks, *__: (0, 0, blocks[i], 0))
    in_specs = table_specs(lambda item, total, blocks, rows, *_: rows[item], tables.shape[1])  # noqa: ARG005
    in_specs += [block, *(pl.BlockSpec(memory_space=pl.ANY) for _ in kept)]
    if sinks is not None:
        in_specs.append(pl.BlockSpec(sinks.shape, lambda *_: (0, 0, 0)))
    scratch: list[Any] = [
        pltpu.VMEM((2, num_kv_heads, run * page, width), rows.dtype),
        pltpu.VMEM((num_kv_heads, 1, num_queries), jnp.float32),
        pltpu.VMEM((num_kv_heads, 1, num_queries), jnp.float32),
        pltpu.VMEM((num_kv_heads, num_values, num_queries), jnp.float32),
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
    num_kv_heads, _, num_queries = outs.shape
    block, row = blocks[item], rows[item]

    def span_of(item: Scalar, table: Ref) -> Span:
        row = rows[item]
        first = jnp.maximum(blocks[item] * tokens, offsets[row])  # of its tokens in the block …
        last = jnp.minimum((blocks[item] + 1) * tokens, offsets[row + 1]) - 1  # … to here
        to_position = starts[row] - offsets[row]
        seen = 0 if spec.sliding_window is None else jnp.maximum(first + to_position - spec.sliding_window + 1, 0)
        return Span(table, seen, last + to_position)

    span = span_of(item, table)
    at_once = heads_at_once(num_kv_heads, num_queries)
    num_runs = pages.num_runs(span)

    @pl.when(item == 0)
    def bring_first() -> None:
        memory[0] = 0
        pages.start(span, 0, 0)

    @pl.when((item == 0) | (blocks[jnp.maximum(item - 1, 0)] != block))
    def empty_softmax() -> None:
        tops[...] = jnp.full(tops.shape, MASKED, jnp.float32) if sinks is None else sinks[...] * LOG2_E
        totals[...] = jnp.full(totals.shape, 0.0 if sinks is None else 1.0, jnp.float32)
        outs[...] = jnp.zeros(outs.shape, jnp.float32)

    # Of each query its position; before all others where it is of another row.
    token = block * tokens + lax.broadcasted_iota(jnp.int32, (1, num_queries), 1) % tokens
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

        at = first + lax.broadcasted_iota(jnp.int32, (pages.positions, 1), 0)
        if (of_run := pages.scales_of(half)) is not None and key_scales is not None and value_scales is not None:
            is_real = first + lax.broadcasted_iota(jnp.int32, key_scales.shape, 2) <= span.last
            key_scales[...], value_scales[...] = (jnp.where(is_real, scales, 0.0) for scales in of_run)

        def some_heads(index: Scalar, _: None) -> None:
            heads = pl.ds(index * at_once, at_once)
            of_heads = None
            if key_scales is not None and value_scales is not None:
                of_heads = Scales(key_scales[heads], value_scales[heads])
            softmax = Softmax(tops[heads], totals[heads], outs[heads])
            of_block = q[heads].reshape(at_once, num_queries, -1)
            seen = is_seen(at, queries, spec)
            tops[heads], totals[heads], outs[heads] = _advance(
                softmax, of_block, buffer[half, heads], of_heads, seen, spec.soft_cap
            )

        lax.fori_loop(0, num_kv_heads // at_once, some_heads, None)
        return 1 - half

    memory[0] = lax.fori_loop(0, num_runs, one_run, memory[0])

    @pl.when((item == total[0] - 1) | (blocks[jnp.minimum(item + 1, total[0] - 1)] != block))
    def write_out() -> None:
        def one_head(head: Scalar, _: None) -> None:
            found = finish(Softmax(tops[head], totals[head], outs[head]))
            if len(found) < q.shape[-1]:  # values are in the upper half of the lanes
                found = jnp.concatenate([jnp.zeros_like(found), found])
            out[head] = found.T.reshape(out.shape[1:]).astype(out.dtype)

        lax.fori_loop(0, num_kv_heads, one_head, None)


def heads_at_once(num_kv_heads: int, num_queries: int) -> int:
    """How many heads of keys are computed with together, of so many queries each."""
    return math.gcd(num_kv_heads, max(1, _MOST_AT_ONCE // num_queries))


def _advance(
    softmax: Softmax, q: jax.Array, rows: jax.Array, scales: Scales | None, seen: jax.Array, soft_cap: float | None
) -> Softmax:
    """With some positions more, for some heads K: queries [K, M, operand], rows of the cache [K, S, width], seen [S, M] bool.

    Of the softmax top and total are [K, 1, M], and out [K, values, M]. Rows of 8 bits are multiplied as bfloat16, which changes
    none, and scales are put to scores and weights.
    """
    rows = rows.astype(q.dtype)
    precision = lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    values = jnp.swapaxes(rows, 1, 2)[:, rows.shape[2] // 2 :]
    scores = lax.dot_general(
        rows[..., : q.shape[2]], q, (((2,), (2,)), ((0,), (0,))), precision=precision, preferred_element_type=jnp.float32
    )
    if scales is not None:
        scores *= _as_column(scales.keys)
    if soft_cap is not None:
        cap = soft_cap * LOG2_E
        scores = cap * jnp.tanh(scores * (1.0 / cap))
    scores = jnp.where(seen, scores, MASKED)
    top = jnp.maximum(softmax.top, jnp.max(scores, axis=1, keepdims=True))
    # Of a query that has seen nothing yet, of another row, the largest is a masked one: it must not weigh 1.
    weights = jnp.exp2(scores - jnp.maximum(top, LEAST))
    shrink = jnp.exp2(softmax.top - top)
    total = softmax.total * shrink + jnp.sum(weights, axis=1, keepdims=True)
    if scales is not None:
        weights *= _as_column(scales.values)
    partial = lax.dot_general(
        values, weights.astype(rows.dtype), (((2,), (1,)), ((0,), (0,))), precision=precision, preferred_element_type=jnp.float32
    )
    return Softmax(top, total, softmax.out * shrink + partial)


def _as_column(scales: jax.Array) -> jax.Array:
    """[K, 1, S] as [K, S, 1]."""
    return jnp.swapaxes(jnp.broadcast_to(scales, (len(scales), LANES, scales.shape[2])), 1, 2)[..., :1]
