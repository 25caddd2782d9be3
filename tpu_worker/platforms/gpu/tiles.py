"""What the attention kernels share: which item of a list a program works on, tiles out of the cache, the softmax over them.

Triton's tensors have powers of two as sizes. What is not one, heads of 80 or groups of 6 queries, is filled up in registers only:
what lies behind is masked, and takes no place in memory.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import triton as plgpu

from tpu_worker.platforms.metadata import AttentionSpec

Ref: TypeAlias = Any  # of Pallas: an array in the device's memory
Scalar: TypeAlias = Any  # [] int32, traced or not

STAGES = 3  # of a loop over tiles: two are on their way to shared memory, 32 to 64 KiB of it, while one is computed with
FEWEST_QUERIES = 16  # of a tile: tensor cores multiply by so many rows
_LOG2_E = 1.4426950408889634  # powers of two are what the hardware has
LOWEST = -1e30  # less than any score, and more than a masked one, so that no difference of two is NaN
_NONE = 2**31 - 1  # an end that no item reaches


def power_of_two(size: int) -> int:
    """The next one, from this size on."""
    return 1 << max(0, size - 1).bit_length()


def ends_of(counts: jax.Array) -> jax.Array:
    """Where the items of each of R owners end in a list of all of them, [R filled up] int32, from how many each has, [R] int32."""
    ends = jnp.cumsum(counts, dtype=jnp.int32)
    return jnp.pad(ends, (0, power_of_two(len(counts)) - len(counts)), constant_values=_NONE)


def find_owner(ends: jax.Array, item: Scalar) -> tuple[Scalar, Scalar]:
    """Whose an item is, and which of its owner's. In a kernel that is cheaper than a list of all items in memory."""
    is_before = ends <= item
    owner = jnp.sum(is_before.astype(jnp.int32))
    return owner, item - jnp.max(jnp.where(is_before, ends, 0))


@dataclass(frozen=True, slots=True)
class Heads:
    """Sizes of one layer."""

    kv_heads: int
    group: int  # queries of a head of keys
    dim: int

    @property
    def padded_group(self) -> int:
        """Queries of a head of keys, filled up."""
        return power_of_two(self.group)

    @property
    def padded_dim(self) -> int:
        """Features of a head, filled up."""
        return max(16, power_of_two(self.dim))

    @property
    def tile(self) -> int:
        """Positions of the cache that are computed with at a time: as many as leave room in shared memory for the next ones."""
        return 64 if self.padded_dim <= 128 else 32


@dataclass(frozen=True, slots=True)
class Layer:
    """What the kernels are told of a layer and a step."""

    spec: AttentionSpec
    heads: Heads
    page: int  # positions of a block
    tables: jax.Array  # [R, MB] int32
    sinks: jax.Array | None  # [H] float32


class Softmax(NamedTuple):
    """Of M queries over what has come so far."""

    top: jax.Array  # [M] float32: the largest score, times log2 e
    total: jax.Array  # [M] float32: the sum of weights, relative to `top`
    out: jax.Array  # [M, D filled up] float32: that of weighted values


def begin(num_queries: int, padded_dim: int) -> Softmax:
    """Before anything has come."""
    top = jnp.full((num_queries,), LOWEST, jnp.float32)
    return Softmax(top, jnp.zeros((num_queries,), jnp.float32), jnp.zeros((num_queries, padded_dim), jnp.float32))


def add_sinks(top: jax.Array, total: jax.Array, sinks: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(top, total, what else must be multiplied with) of a softmax with scores [M] more, whose values are zero."""
    scores = sinks * _LOG2_E
    new_top = jnp.maximum(top, scores)
    shrink = jnp.exp2(top - new_top)
    return new_top, total * shrink + jnp.exp2(scores - new_top), shrink


def load_rows(ref: Ref, rows: jax.Array, are_there: jax.Array, heads: Heads) -> jax.Array:
    """Rows [N] of an array [rows, D] as [N, D filled up]; zeros where they are not there, and where D is filled up."""
    where, mask = _address(rows, are_there, heads)
    return plgpu.load(ref.at[where], mask=mask, other=0.0)


def store_rows(ref: Ref, rows: jax.Array, are_there: jax.Array, values: jax.Array, heads: Heads) -> None:
    """Writes values [N, D filled up] to rows [N] of an array [rows, D]."""
    # Outside where they are not: there the interpreter writes what it has read before, and two addresses may be the same.
    where, mask = _address(jnp.where(are_there, rows, _NONE), are_there, heads)
    plgpu.store(ref.at[where], values.astype(ref.dtype), mask=mask)


def _address(rows: jax.Array, are_there: jax.Array, heads: Heads) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    features = lax.broadcasted_iota(jnp.int32, (1, heads.padded_dim), 1)
    mask = are_there[:, None] & (features < heads.dim)
    shape = (len(rows), heads.padded_dim)
    return (jnp.broadcast_to(rows[:, None], shape), jnp.broadcast_to(features, shape)), mask


class Span(NamedTuple):
    """Positions of a row."""

    first: Scalar
    end: Scalar  # the one behind the last


@dataclass(frozen=True, slots=True)
class Tiles:
    """The keys and values of one row and one head of keys, a tile of positions at a time.

    Tiles begin at multiples of their size, so that what a query sees comes in the same pieces whatever queries it is with.
    """

    cache: Ref  # [NB * KH * 2 * page, D]: keys of a block and head, then its values
    tables: Ref  # [R, MB] int32
    row: Scalar
    kv_head: Scalar
    spec: AttentionSpec
    heads: Heads
    page: int

    def attend(self, softmax: Softmax, q: jax.Array, queries: jax.Array, span: Span) -> Softmax:
        """Softmax with the positions of a span too. q [M, D filled up] bfloat16, of queries at positions [M] int32; -1: of none."""
        spec, tile = self.spec, self.heads.tile
        scale = spec.scale * _LOG2_E

        def positions_of(index: Scalar) -> tuple[jax.Array, jax.Array]:
            """Those of a tile, and whether they are of the span: what lies behind or before may be NaN, and 0 × NaN is NaN."""
            positions = index * tile + jnp.arange(tile, dtype=jnp.int32)
            return positions, (positions >= span.first) & (positions < span.end)

        def blocks_of(index: Scalar) -> jax.Array:
            positions, is_there = positions_of(index)
            table = self.tables.at[jnp.broadcast_to(self.row, (tile,)), positions // self.page]
            return plgpu.load(table, mask=is_there, other=0)

        def one_tile(index: Scalar, carry: tuple[jax.Array, Softmax]) -> tuple[jax.Array, Softmax]:
            blocks, softmax = carry
            positions, is_there = positions_of(index)
            rows = (blocks * self.heads.kv_heads + self.kv_head) * (2 * self.page) + positions % self.page
            keys = load_rows(self.cache, rows, is_there, self.heads)
            scores = lax.dot_general(q, keys, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
            if spec.soft_cap is None:
                scores = scores * scale
            else:
                scores = spec.soft_cap * _LOG2_E * _tanh(scores * (spec.scale / spec.soft_cap))
            seen = is_there[None, :] & (positions[None, :] <= queries[:, None])
            if spec.sliding_window is not None:
                seen &= positions[None, :] > queries[:, None] - spec.sliding_window
            scores = jnp.where(seen, scores, -jnp.inf)
            top = jnp.maximum(softmax.top, jnp.max(scores, axis=1))
            weights = jnp.exp2(scores - top[:, None])
            shrink = jnp.exp2(softmax.top - top)
            values = load_rows(self.cache, rows + self.page, is_there, self.heads)
            sides = (((1,), (0,)), ((), ()))
            partial = lax.dot_general(weights.astype(values.dtype), values, sides, preferred_element_type=jnp.float32)
            total = softmax.total * shrink + jnp.sum(weights, axis=1)
            return blocks_of(index + 1), Softmax(top, total, softmax.out * shrink[:, None] + partial)

        first = span.first // tile
        # Blocks are looked up one tile ahead, so that keys and values are on their way before a tile is computed with.
        result: Softmax = lax.fori_loop(first, (span.end + tile - 1) // tile, one_tile, (blocks_of(first), softmax))[1]
        return result


def _tanh(x: jax.Array) -> jax.Array:
    """From the exponential that the hardware has, and without the library of CUDA, which may not be there."""
    return 1.0 - 2.0 / (1.0 + jnp.exp2(x * (2.0 * _LOG2_E)))
