"""What the attention kernels share: pages on their way into vector memory, and the softmax over what has come so far."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tpu_worker.platforms.metadata import AttentionSpec
from tpu_worker.platforms.tpu.layout import group_of, split_scales

Ref: TypeAlias = Any  # of Pallas: a place in some memory
Scalar: TypeAlias = Any  # [] int32, traced or not
Interpret: TypeAlias = bool | pltpu.InterpretParams  # by which of Pallas' interpreters, if by any

_MOST_POSITIONS = 512  # of a run: enough that a page is on its way while others are computed with
_MOST_BYTES = 2 << 20  # of one as operands, as long as a page has fewer: vector memory is 16 MiB, where nothing more is asked for
MASKED = -0.7 * 3.4e38  # less than any score, and finite, so that no difference of two is NaN
LEAST = -1e30  # no more than any score, and so much more than a masked one that this weighs nothing beside it


class Scales(NamedTuple):
    """Of the integers that the positions of a run are kept as, float32 [..., 1, S]."""

    keys: jax.Array
    values: jax.Array


class Span(NamedTuple):
    """What a work item attends to: positions of one row, from the first one that any of its queries sees to the last."""

    table: Ref  # [1, 1, MB] int32 in scalar memory: the blocks of the row
    first: Scalar
    last: Scalar


@dataclass(frozen=True)
class Pages:
    """The pages of a span, in runs of `run` pages, each run in one half of a buffer: one is computed with while another comes."""

    cache: Ref  # [NB, KH, page, width] in the chip's main memory
    buffer: Ref  # [2, KH, run * page, width]
    arrived: Ref  # [2] semaphores
    run: int
    scales: Ref | None = None  # of integers [NB, KH, 1, lanes] …
    scale_buffer: Ref | None = None  # … and [2, run, KH, 1, lanes]

    @property
    def page(self) -> int:
        """Positions of a page."""
        return int(self.cache.shape[2])

    @property
    def positions(self) -> int:
        """Of a run."""
        return self.run * self.page

    def num_runs(self, span: Span) -> Scalar:
        """How many the span needs."""
        return (span.last // self.page - span.first // self.page) // self.run + 1

    def first_position(self, span: Span, index: Scalar) -> Scalar:
        """Of a run."""
        return (span.first // self.page + index * self.run) * self.page

    def start(self, span: Span, index: Scalar, half: Scalar) -> None:
        """Has a run of the span brought into a half of the buffer. Only pages of the span: what others hold is never read."""
        self._each(span, index, half, lambda copy: copy.start())

    def wait(self, span: Span, index: Scalar, half: Scalar) -> None:
        """Until it is there."""
        self._each(span, index, half, lambda copy: copy.wait())

    def _each(self, span: Span, index: Scalar, half: Scalar, do: Callable[[Any], None]) -> None:
        first = span.first // self.page + index * self.run
        count = jnp.minimum(span.last // self.page - first + 1, self.run)

        def one(i: Scalar, _: None) -> None:
            where = pl.ds(pl.multiple_of(i * self.page, self.page), self.page)
            block = span.table[0, 0, first + i]
            do(pltpu.make_async_copy(self.cache.at[block], self.buffer.at[half, :, where, :], self.arrived.at[half]))
            if self.scales is not None and self.scale_buffer is not None:
                do(pltpu.make_async_copy(self.scales.at[block], self.scale_buffer.at[half, i], self.arrived.at[half]))

        lax.fori_loop(0, count, one, None)

    def clear_after(self, half: Scalar, last: Scalar) -> None:
        """Zeros behind a position of a run, counted within it: what lies there may be NaN, and 0 × NaN is NaN. Integers are not."""
        if self.scales is not None:
            return
        size = group_of(self.buffer.dtype)
        group = last // size
        where = self.group(half, group)
        kept = lax.broadcasted_iota(jnp.int32, where.shape, 1) <= last % size
        where[...] = choose_rows(kept, where[...], jnp.zeros((), where.dtype))

        def clear(i: Scalar, _: None) -> None:
            where = self.group(half, i)
            where[...] = jnp.zeros(where.shape, where.dtype)

        lax.fori_loop(group + 1, self.positions // size, clear, None)

    def group(self, half: Scalar, group: Scalar) -> Ref:
        """A tile's rows of a run, [KH, rows, width]."""
        size = group_of(self.buffer.dtype)
        return self.buffer.at[half, :, pl.ds(pl.multiple_of(group * size, size), size), :]

    def scales_of(self, half: Scalar) -> Scales | None:
        """Those of a run, [KH, 1, S]; what lies behind the span's end may be anything."""
        if self.scale_buffer is None:
            return None
        parts = [self.scale_buffer[half, i][..., : self.page] for i in range(self.run)]
        return Scales(*split_scales(jnp.concatenate(parts, axis=-1) if self.run > 1 else parts[0]))


def choose_rows(chosen: jax.Array, some: jax.Array, others: jax.Array) -> jax.Array:
    """`jnp.where`, of rows of the cache's type: in 32 bits where they are of 8, in which older chips compute nothing."""
    if some.dtype.itemsize > 1:
        return jnp.where(chosen, some, others)
    wide = jnp.int32 if some.dtype == jnp.int8 else jnp.float32
    return jnp.where(chosen, some.astype(wide), others.astype(wide)).astype(some.dtype)


def in_main_memory(arrays: Iterable[jax.Array], interpret: Interpret) -> list[jax.Array]:
    """Operands of a kernel that stay there: XLA would bring small ones to vector memory as a whole, and write them back."""
    return [array if interpret else pltpu.with_memory_space_constraint(array, pltpu.HBM) for array in arrays]


def grid_of(total: jax.Array) -> Scalar:
    """Steps of a kernel with total [1] work items. One at least: what a grid without any would fetch nobody says."""
    return jnp.maximum(total[0], 1)


def each_item(kernel: Callable[..., None]) -> Callable[..., None]:
    """The kernel, called as kernel(item, *refs) for every work item there is; how many is what comes first of `refs`."""

    def steps(*refs: Ref) -> None:
        item = pl.program_id(0)
        pl.when(item < refs[0][0])(lambda: kernel(item, *refs))

    return steps


def table_specs(row_of: Callable[..., Scalar], width: int) -> list[pl.BlockSpec]:
    """How the tables of a work item and of the next come, out of [R, 1, width]: all of them are more than scalar memory may hold.

    row_of: of an item, from its number and what is prefetched, among which how many there are comes first.
    """

    def spec(behind: int) -> pl.BlockSpec:
        def where(item: Scalar, *scalars: Ref) -> tuple[Scalar, ...]:
            return row_of(jnp.minimum(item + behind, jnp.maximum(scalars[0][0] - 1, 0)), *scalars), 0, 0

        return pl.BlockSpec((1, 1, width), where, memory_space=pltpu.SMEM)

    return [spec(0), spec(1)]


def pages_at_once(cache: jax.Array | jax.ShapeDtypeStruct, most: int = _MOST_POSITIONS) -> int:
    """Pages of a run of a cache [NB, KH, page, width]. most: positions."""
    _, num_kv_heads, page, width = cache.shape
    positions = min(most, _MOST_BYTES // (num_kv_heads * width * max(2, cache.dtype.itemsize)))
    return max(1, positions // page)


class Softmax(NamedTuple):
    """An online softmax (Milakov and Gimelshein 2018) of queries [..., M], float32."""

    top: jax.Array  # [..., M, 1] the largest score so far
    total: jax.Array  # [..., M, 1] sum of the weights
    out: jax.Array  # [..., M, operand] sum of the values, weighted


def finish(softmax: Softmax) -> jax.Array:
    """The output [..., M, operand]; of queries that saw nothing, zero."""
    return softmax.out / jnp.where(softmax.total > 0, softmax.total, 1.0)


def is_seen(positions: jax.Array, queries: jax.Array | Scalar, spec: AttentionSpec) -> jax.Array:
    """Whether queries at their positions see these positions, broadcast against each other."""
    seen = positions <= queries
    if spec.sliding_window is not None:
        seen &= positions > queries - spec.sliding_window
    return seen
