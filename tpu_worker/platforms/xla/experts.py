"""The products of a mixture of experts in plain XLA.

Rows, one for each choice of a token, are sorted by expert, so that those of one lie side by side. Of few choices the weights
are gathered instead, which reads these alone.

On the CPU both go to tiles of a fixed number of rows: XLA has no grouped product there that does less than all experts' work, and a
tile is the same product in every bucket, so that a row has the same bits in all of them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from protocol.config import FloatType
from tpu_worker.models.layers import Activation, gated, rms_norm
from tpu_worker.platforms.platform import Allocate, HostArray
from tpu_worker.platforms.xla.products import PlainWeight, ScaledWeight, Weight
from tpu_worker.stacking import Operand, value
from tpu_worker.weights.blocks import BlockMatrix
from tpu_worker.weights.scaled_rows import ScaledRows

_TILE_ROWS = 16  # of a product on the CPU: few enough for decoding, enough to read an expert's weights seldom in prompts

_BY_EXPERT = jax.lax.RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), lhs_ragged_dimensions=(0,), rhs_group_dimensions=(0,))
_WITH_ROWS = (((1,), (1,)), ((), ()))


def pack_experts(
    read: Callable[[int], HostArray | ScaledRows | BlockMatrix],
    num_experts: int,
    allocate: Allocate,
    *,
    gated: bool = False,
    dtype: FloatType = "bfloat16",
) -> Weight:
    """`platform.PackExperts`: [experts, out, in]."""
    values: HostArray | None = None
    scales: HostArray | None = None
    for expert in range(num_experts):
        weight = read(expert)
        if values is None:
            kept = weight.numbers.dtype if isinstance(weight, ScaledRows) else jnp.dtype(dtype)
            values = allocate((num_experts, *weight.shape), kept)
            scales = allocate((num_experts, weight.shape[0]), np.float32) if isinstance(weight, ScaledRows) else None
        if isinstance(weight, ScaledRows):
            assert scales is not None
            values[expert], scales[expert] = weight.numbers, weight.scales
        else:
            values[expert] = weight.values() if isinstance(weight, BlockMatrix) else weight
    return PlainWeight(values, gated) if scales is None else ScaledWeight(values, scales, gated)  # type: ignore[arg-type]


class _Sorted(NamedTuple):
    """The rows of a step, one for each choice: R = T * C."""

    order: jax.Array  # [R] int32: which row comes where
    expert: jax.Array  # [R] int32, rising; the number of experts for those of no expert that is here
    sizes: jax.Array  # [E] int32: rows of each


def experts(
    x: jax.Array,
    chosen: jax.Array,
    shares: jax.Array,
    gate_up: Weight,
    down: Weight,
    *,
    activation: Activation,
    num_rows: jax.Array,
    norm: Operand | None = None,
    eps: float = 0.0,
    gate_up_bias: Operand | None = None,
    down_bias: Operand | None = None,
    residual: jax.Array | None = None,
) -> jax.Array:
    """`platform.Experts`, for accelerators."""
    num_experts = len(gate_up.values)
    rows = _inputs(x, norm, eps)
    biases = _biases(gate_up_bias, down_bias, num_experts)
    keys = _keys(chosen, num_rows, num_experts)
    if keys.size <= num_experts:
        mine = jnp.minimum(keys, num_experts - 1)

        def of_choices(rows: jax.Array, weight: Weight) -> jax.Array:
            values = weight.operand(weight.values[mine])
            precision = weight.precision
            return jnp.einsum("ri,roi->ro", weight.inputs(rows), values, precision=precision, preferred_element_type=jnp.float32)

        out = _apply(of_choices, rows[jnp.arange(keys.size) // chosen.shape[1]], mine, gate_up, down, activation, biases)
        return _add_up(out, keys < num_experts, shares, residual)
    by_expert = _sort(keys, num_experts)

    def of_groups(rows: jax.Array, weight: Weight) -> jax.Array:
        return jax.lax.ragged_dot_general(
            weight.inputs(rows),
            weight.operand(weight.values),
            by_expert.sizes,
            _BY_EXPERT,
            precision=weight.precision,
            preferred_element_type=jnp.float32,
        )

    mine = jnp.minimum(by_expert.expert, num_experts - 1)
    out = _apply(of_groups, rows[by_expert.order // chosen.shape[1]], mine, gate_up, down, activation, biases)
    back = jnp.zeros_like(by_expert.order).at[by_expert.order].set(jnp.arange(keys.size, dtype=jnp.int32))
    return _add_up(out[back], keys < num_experts, shares, residual)


def experts_in_tiles(
    x: jax.Array,
    chosen: jax.Array,
    shares: jax.Array,
    gate_up: Weight,
    down: Weight,
    *,
    activation: Activation,
    num_rows: jax.Array,
    norm: Operand | None = None,
    eps: float = 0.0,
    gate_up_bias: Operand | None = None,
    down_bias: Operand | None = None,
    residual: jax.Array | None = None,
    tile_rows: int = _TILE_ROWS,
) -> jax.Array:
    """`platform.Experts`, in tiles of so many rows of one expert."""
    num_experts, width = len(gate_up.values), down.values.shape[1]
    keys = _keys(chosen, num_rows, num_experts)
    by_expert = _sort(keys, num_experts)
    rows = _inputs(x, norm, eps)[by_expert.order // chosen.shape[1]]
    rows = jnp.pad(rows, ((0, tile_rows), (0, 0)))
    biases = _biases(gate_up_bias, down_bias, num_experts)
    tiles_of = (by_expert.sizes + tile_rows - 1) // tile_rows
    tile_ends, row_ends = jnp.cumsum(tiles_of), jnp.cumsum(by_expert.sizes)

    def one_tile(index: jax.Array, out: jax.Array) -> jax.Array:
        expert = jnp.searchsorted(tile_ends, index, side="right", method="compare_all").astype(jnp.int32)
        first = row_ends[expert] - by_expert.sizes[expert] + (index - tile_ends[expert] + tiles_of[expert]) * tile_rows

        def of_expert(rows: jax.Array, weight: Weight) -> jax.Array:
            values = weight.operand(weight.of_expert(expert))
            return jax.lax.dot_general(
                weight.inputs(rows), values, _WITH_ROWS, precision=weight.precision, preferred_element_type=jnp.float32
            )

        tile = jax.lax.dynamic_slice_in_dim(rows, first, tile_rows)
        made = _apply(of_expert, tile, expert[None], gate_up, down, activation, biases)
        # What a tile has of the rows behind its expert's is wrong, and the tiles after it write over that.
        return jax.lax.dynamic_update_slice_in_dim(out, made, first, axis=0)

    out = jax.lax.fori_loop(0, tile_ends[-1], one_tile, jnp.zeros((len(rows), width), jnp.float32))
    back = jnp.zeros_like(by_expert.order).at[by_expert.order].set(jnp.arange(keys.size, dtype=jnp.int32))
    return _add_up(out[back], keys < num_experts, shares, residual)


def scores(
    x: jax.Array,
    weight: Operand,
    *,
    num_rows: jax.Array,  # noqa: ARG001 padding is computed like the rest
    norm: Operand | None = None,
    eps: float = 0.0,
) -> jax.Array:
    """`platform.Scores`, for accelerators."""
    return _score(_inputs(x, norm, eps), value(weight))


def scores_in_tiles(
    x: jax.Array, weight: Operand, *, num_rows: jax.Array, norm: Operand | None = None, eps: float = 0.0
) -> jax.Array:
    """`platform.Scores`, for the CPU."""
    num_tokens, weights = len(x), value(weight)
    rows = jnp.pad(_inputs(x, norm, eps), ((0, -num_tokens % _TILE_ROWS), (0, 0)))

    def one_tile(index: jax.Array, out: jax.Array) -> jax.Array:
        tile = jax.lax.dynamic_slice_in_dim(rows, index * _TILE_ROWS, _TILE_ROWS)
        return jax.lax.dynamic_update_slice_in_dim(out, _score(tile, weights), index * _TILE_ROWS, axis=0)

    empty = jnp.zeros((len(rows), len(weights)), jnp.float32)
    return jax.lax.fori_loop(0, (num_rows + _TILE_ROWS - 1) // _TILE_ROWS, one_tile, empty)[:num_tokens]  # type: ignore[no-any-return]


def _score(rows: jax.Array, weight: jax.Array) -> jax.Array:
    return jax.lax.dot_general(rows, weight, _WITH_ROWS, precision=jax.lax.Precision.HIGHEST)


def _inputs(x: jax.Array, norm: Operand | None, eps: float) -> jax.Array:
    return x if norm is None else rms_norm(x, value(norm), eps)


def _keys(chosen: jax.Array, num_rows: jax.Array, num_experts: int) -> jax.Array:
    """The expert of each choice [R]; the number of experts for padding, and for choices of none that is here."""
    real = jnp.arange(len(chosen))[:, None] < num_rows
    return jnp.where(real & (chosen >= 0) & (chosen < num_experts), chosen, num_experts).reshape(-1)


def _sort(keys: jax.Array, num_experts: int) -> _Sorted:
    order = jnp.argsort(keys, stable=True).astype(jnp.int32)
    sizes = jnp.sum(keys[:, None] == jnp.arange(num_experts), axis=0, dtype=jnp.int32)
    return _Sorted(order, keys[order], sizes)


def _biases(gate_up: Operand | None, down: Operand | None, num_experts: int) -> tuple[jax.Array | None, jax.Array | None]:
    """Of each expert [E, 2 * mlp], those of its gate first, and [E, out]."""
    both = None if gate_up is None else jnp.concatenate(jnp.split(value(gate_up), 2), axis=-1)
    assert both is None or len(both) == num_experts
    return both, None if down is None else value(down)


def _apply(
    multiply: Callable[[jax.Array, Weight], jax.Array],
    rows: jax.Array,
    expert: jax.Array,
    gate_up: Weight,
    down: Weight,
    activation: Activation,
    biases: tuple[jax.Array | None, jax.Array | None],
) -> jax.Array:
    """What experts make of their rows [R, in], with the product that is theirs; expert [R], or [1] where it is that of all."""
    both = gate_up.finish(multiply(rows, gate_up), expert)
    if biases[0] is not None:
        both += biases[0][expert]
    gate, up = jnp.split(both, 2, axis=-1)
    out = down.finish(multiply(gated(activation, gate, up), down), expert)
    return out if biases[1] is None else out + biases[1][expert]


def _add_up(rows: jax.Array, here: jax.Array, shares: jax.Array, residual: jax.Array | None) -> jax.Array:
    """rows [R, out] times shares [T, C], where an expert of this platform made them, added up for each token in order."""
    num_tokens, each = shares.shape
    parts = jnp.where(here[:, None], rows, 0.0).reshape(num_tokens, each, -1) * shares[:, :, None]
    total = jnp.zeros_like(parts[:, 0]) if residual is None else residual
    for choice in range(each):
        total = total + parts[:, choice]
    return total
