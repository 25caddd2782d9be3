"""Heads in and out of a product's features, in Pallas: XLA would move them between lanes and rows in some twenty passes a layer.

A projection [T, (H + 2 KH) * S] has heads side by side along lanes, `stride` S features each, which divides a register or fills
some: so no head lies across two. Attention wants each head's own: for single tokens below each other, one token after the other;
for prompts the tokens below each other, one head after the other.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tpu_worker.lanes import LANES
from tpu_worker.platforms.metadata import AttentionSpec
from tpu_worker.platforms.tpu.layout import RowLayout
from tpu_worker.platforms.tpu.pages import Interpret, Ref

Turns: TypeAlias = tuple[jax.Array, jax.Array]  # `Heads.turns`

_SUBLANES = 8  # rows of a register: queries of a head of keys are filled up to as many
ROWS_AT_ONCE = 8  # tokens: one register of float32
TOKENS_AT_ONCE = 64
LOG2_E = math.log2(math.e)
_PACKED_ROWS = 16  # of two bytes: one register


@dataclass(frozen=True, slots=True)
class Heads:
    """Of one layer on one chip."""

    num_heads: int
    num_kv_heads: int
    spec: AttentionSpec
    layout: RowLayout  # of a row of the cache
    interpret: Interpret

    @property
    def stride(self) -> int:
        """Features from head to head: as many as a head has, where these divide a register or fill some."""
        dim = self.spec.head_dim
        return dim if LANES % dim == 0 or dim % LANES == 0 else self.layout.operand

    @property
    def group(self) -> int:
        """Queries that read the same head of keys."""
        return self.num_heads // self.num_kv_heads

    @property
    def queries(self) -> int:
        """M: these, filled up to whole registers."""
        return -(-self.group // _SUBLANES) * _SUBLANES

    @property
    def rotary(self) -> int:
        """Features of a head that are rotated, where any are."""
        return self.spec.head_dim if self.spec.rotary_dim is None else self.spec.rotary_dim

    def spread(self, qkv: jax.Array) -> jax.Array:
        """qkv [T, (H + 2 KH) * D] with heads `stride` apart, filled up to whole registers."""
        dim = self.spec.head_dim
        if self.stride != dim:
            heads = qkv.reshape(qkv.shape[0], -1, dim)
            qkv = jnp.pad(heads, ((0, 0), (0, 0), (0, self.stride - dim))).reshape(qkv.shape[0], -1)
        return jnp.pad(qkv, ((0, 0), (0, -qkv.shape[1] % LANES)))

    def turns(self, rope: jax.Array | None, positions: jax.Array) -> Turns | None:
        """What a head's features at positions [T] are multiplied with, and what their partners, each [T, lanes] float32."""
        if rope is None:
            return None
        rows = rope[positions]
        rotary = self.rotary
        cos, sin = rows[:, : rotary // 2], rows[:, rotary // 2 : rotary]
        rest = (len(positions), self.stride - rotary)
        own = jnp.concatenate([cos, cos, jnp.ones(rest, rows.dtype)], axis=1)
        partner = jnp.concatenate([-sin, sin, jnp.zeros(rest, rows.dtype)], axis=1)
        times = max(1, LANES // self.stride)
        return jnp.tile(own, (1, times)), jnp.tile(partner, (1, times))

    def split_rows(self, qkv: jax.Array, turns: Turns | None) -> tuple[jax.Array, jax.Array]:
        """qkv [N, W], as `spread` has it, as queries [N, KH, M, operand], rotated and scaled, and new rows [N, KH, 1, width]."""
        rows = len(qkv)
        q = jax.ShapeDtypeStruct((rows, self.num_kv_heads, self.queries, self.layout.operand), self.layout.operand_dtype)
        new = jax.ShapeDtypeStruct((rows, self.num_kv_heads, 1, self.layout.width), self.layout.new_dtype)
        block = min(ROWS_AT_ONCE, rows)
        q, new = self._call("split_rows", _split_rows, block, (qkv, *(turns or ())), 0, (q, new), (0, 0))
        return q, new

    def split_columns(self, qkv: jax.Array, turns: Turns | None, tokens: int) -> tuple[jax.Array, jax.Array]:
        """qkv [T, W] as queries [KH, G, tokens, operand], rotated and scaled, and new rows [KH, tokens, width].

        Scaled by LOG2_E too: scores are exponents of two then, which the chip raises without another multiplication.
        tokens: T or more, of which those from T on may be anything.
        """
        q = jax.ShapeDtypeStruct((self.num_kv_heads, self.group, tokens, self.layout.operand), self.layout.operand_dtype)
        new = jax.ShapeDtypeStruct((self.num_kv_heads, tokens, self.layout.width), self.layout.new_dtype)
        block = min(TOKENS_AT_ONCE, len(qkv))
        q, new = self._call("split_columns", _split_columns, block, (qkv, *(turns or ())), 0, (q, new), (2, 1))
        return q, new

    def join_rows(self, out: jax.Array) -> jax.Array:
        """What attention makes of queries of `split_rows`, [N, KH, M, operand], as [N, H * D] float32."""
        rows = len(out)
        return self._join("join_rows", _join_rows, min(ROWS_AT_ONCE, rows), out, 0, rows)

    def join_columns(self, out: jax.Array, tokens: int) -> jax.Array:
        """The same of `split_columns`, [KH, G, T or more, operand], as [T, H * D] float32."""
        return self._join("join_columns", _join_columns, min(TOKENS_AT_ONCE, tokens), out, 2, tokens)

    def _join(self, name: str, kernel: Callable[..., None], block: int, out: jax.Array, axis: int, tokens: int) -> jax.Array:
        width = -(-self.num_heads * self.stride // LANES) * LANES
        joined: jax.Array
        (joined,) = self._call(name, kernel, block, (out,), axis, (jax.ShapeDtypeStruct((tokens, width), jnp.float32),), (0,))
        joined = joined[:, : self.num_heads * self.stride]
        if self.stride != self.spec.head_dim:
            joined = joined.reshape(tokens, self.num_heads, self.stride)[..., : self.spec.head_dim].reshape(tokens, -1)
        return joined

    def _call(
        self,
        name: str,
        kernel: Callable[..., None],
        block: int,
        operands: tuple[jax.Array, ...],
        in_axis: int,
        results: tuple[jax.ShapeDtypeStruct, ...],
        out_axes: tuple[int, ...],
    ) -> tuple[Any, ...]:
        """in_axis, of all operands, and out_axes: along which tokens lie, of which `block` are taken at a time."""

        def cut(shape: tuple[int, ...], axis: int) -> pl.BlockSpec:
            sizes = tuple(block if dimension == axis else size for dimension, size in enumerate(shape))
            return pl.BlockSpec(sizes, lambda i: tuple(i if dimension == axis else 0 for dimension in range(len(shape))))

        tokens = min(operands[0].shape[in_axis], results[0].shape[out_axes[0]])  # the one may be filled up, or the other
        found: tuple[Any, ...] = pl.pallas_call(
            functools.partial(kernel, self),
            grid=(-(-tokens // block),),
            in_specs=[cut(array.shape, in_axis) for array in operands],
            out_specs=tuple(cut(result.shape, axis) for result, axis in zip(results, out_axes, strict=True)),
            out_shape=results,
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
            interpret=self.interpret,
            name=name,
        )(*operands)
        return found


class _Projection:
    """A block of tokens of a projection, within a kernel."""

    def __init__(self, heads: Heads, qkv: Ref, turns: tuple[Ref, ...], scale: float) -> None:
        self._heads = heads
        self._scale = scale
        self._qkv = qkv
        self._turns = turns
        self._lanes = max(LANES, heads.stride)
        self._rotated: dict[int, jax.Array] = {}

    def query(self, head: int, dtype: jax.typing.DTypeLike) -> jax.Array:
        """[B, operand], rotated and scaled, zeros behind the head."""
        return self._alone(self._scaled, head, dtype)

    def row(self, kv_head: int, dtype: jax.typing.DTypeLike) -> jax.Array:
        """A key, rotated, and a value as a row of the cache, [B, width]."""
        heads = self._heads
        first = LANES // 2 if heads.layout.is_shared else 0
        key = self._alone(self._turned, heads.num_heads + kv_head, dtype)
        value = self._alone(self._column, heads.num_heads + heads.num_kv_heads + kv_head, dtype, first)
        return key + value if heads.layout.is_shared else jnp.concatenate([key, value], axis=1)

    def _alone(self, column: Callable[[int], jax.Array], head: int, dtype: jax.typing.DTypeLike, first: int = 0) -> jax.Array:
        """The features of one head from lane `first` on, and zeros in all others."""
        stride = self._heads.stride
        values = column(head * stride // self._lanes).astype(dtype)
        if stride >= LANES:
            return values
        is_packed = values.dtype.itemsize == 2 and len(values) % _PACKED_ROWS == 0  # two rows are moved as one
        moved = _roll(pltpu.bitcast(values, jnp.int32) if is_packed else values, first - head * stride)
        lane = lax.broadcasted_iota(jnp.int32, moved.shape, 1)
        moved = jnp.where((lane >= first) & (lane < first + stride), moved, jnp.zeros((), moved.dtype))
        return pltpu.bitcast(moved, values.dtype) if is_packed else moved

    def _column(self, index: int) -> jax.Array:
        column: jax.Array = self._qkv[:, index * self._lanes : (index + 1) * self._lanes]
        return column

    def _turned(self, index: int) -> jax.Array:
        if not self._turns:
            return self._column(index)
        if index not in self._rotated:
            x, (own, partner) = self._column(index), self._turns
            self._rotated[index] = x * own[...] + self._across(x) * partner[...]
        return self._rotated[index]

    def _scaled(self, index: int) -> jax.Array:
        scaled: jax.Array = self._turned(index) * jnp.float32(self._scale)
        return scaled

    def _across(self, x: jax.Array) -> jax.Array:
        """Of each feature its partner's, of those that have one."""
        half = self._heads.rotary // 2
        lane = lax.broadcasted_iota(jnp.int32, x.shape, 1)
        is_first = lane % self._heads.stride < half
        if x.shape[1] > LANES:
            return jnp.where(is_first, _roll(x, -half), _roll(x, half))
        return jnp.take_along_axis(x, jnp.where(is_first, lane + half, lane - half) % LANES, axis=1, mode="promise_in_bounds")


def _roll(x: jax.Array, by: int) -> jax.Array:
    """Along lanes, upwards."""
    by %= x.shape[1]
    rolled: jax.Array = pltpu.roll(x, by, 1) if by else x
    return rolled


def _split_rows(heads: Heads, qkv: Ref, *refs: Ref) -> None:
    *turns, q, new = refs
    projection = _Projection(heads, qkv, tuple(turns), heads.spec.scale)
    rows = lax.broadcasted_iota(jnp.int32, q.shape[2:], 0)
    for kv_head in range(heads.num_kv_heads):
        queries = [projection.query(kv_head * heads.group + index, jnp.float32) for index in range(heads.group)]
        row = projection.row(kv_head, jnp.float32).astype(new.dtype)
        for token in range(q.shape[0]):
            tile = jnp.zeros(q.shape[2:], jnp.float32)
            for index, query in enumerate(queries):
                tile = jnp.where(rows == index, query[token : token + 1], tile)
            q[token, kv_head] = tile.astype(q.dtype)
            new[token, kv_head] = row[token : token + 1]


def _split_columns(heads: Heads, qkv: Ref, *refs: Ref) -> None:
    *turns, q, new = refs
    projection = _Projection(heads, qkv, tuple(turns), heads.spec.scale * LOG2_E)
    for kv_head in range(heads.num_kv_heads):
        for index in range(heads.group):
            q[kv_head, index] = projection.query(kv_head * heads.group + index, q.dtype)
        new[kv_head] = projection.row(kv_head, new.dtype)


def _join_rows(heads: Heads, out: Ref, joined: Ref) -> None:
    shape = (joined.shape[0], out.shape[3])
    rows = lax.broadcasted_iota(jnp.int32, shape, 0)

    def of_head(kv_head: int, index: int) -> jax.Array:
        found = jnp.zeros(shape, jnp.float32)
        for token in range(shape[0]):
            found = jnp.where(rows == token, out[token, kv_head].astype(jnp.float32)[index : index + 1], found)
        return found

    _join(heads, of_head, joined)


def _join_columns(heads: Heads, out: Ref, joined: Ref) -> None:
    _join(heads, lambda kv_head, index: out[kv_head, index].astype(jnp.float32), joined)


def _join(heads: Heads, of_head: Callable[[int, int], jax.Array], joined: Ref) -> None:
    """of_head(head of keys, which of its queries): [B, operand] float32."""
    first = LANES // 2 if heads.layout.is_shared else 0  # lane at which values lie
    lanes = max(LANES, heads.stride)
    each = lanes // heads.stride
    for column in range(joined.shape[1] // lanes):
        whole = jnp.zeros((joined.shape[0], lanes), jnp.float32)
        lane = lax.broadcasted_iota(jnp.int32, whole.shape, 1)
        for place in range(each):
            head = column * each + place
            if head < heads.num_heads:
                mine = _roll(of_head(*divmod(head, heads.group)), place * heads.stride - first)
                whole = jnp.where(lane // heads.stride == place, mine, whole)
        joined[:, column * lanes : (column + 1) * lanes] = whole
