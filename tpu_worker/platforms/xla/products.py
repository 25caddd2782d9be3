"""Matrix products in plain XLA: weights of bfloat16, with which inputs are rounded too, or of float32, with which nothing is.

Weights of eight bits are multiplied as bfloat16, which changes none of them, and their scales come to the sums. XLA widens them on
their way into the product: there is no other array of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from protocol.config import FloatType
from tpu_worker import sampler
from tpu_worker.models import layers
from tpu_worker.models.layers import Activation, gated, rms_norm
from tpu_worker.platforms.platform import Allocate
from tpu_worker.stacking import Operand, value
from tpu_worker.token_bits import allowed_tokens
from tpu_worker.weights.blocks import BlockMatrix
from tpu_worker.weights.scaled_rows import ScaledRows

_FEWEST_ROWS = 4  # XLA's CPU leaves its fast path for bfloat16 below this (about 10 times slower)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class PlainWeight:
    """A weight [out, in] in bfloat16 or float32, as it is; of experts [E, out, in]."""

    values: jax.Array
    gated: bool = field(metadata={"static": True})

    def inputs(self, x: jax.Array) -> jax.Array:
        """x as this weight is multiplied with it."""
        return x.astype(self.values.dtype)

    def operand(self, values: jax.Array) -> jax.Array:
        """Some of its values as they are multiplied."""
        return values

    def of_expert(self, expert: jax.Array) -> jax.Array:
        """The values [out, in] of one expert [] int32. As rows of one matrix: of several matrices TPU 7x would copy all."""
        size, width = self.values.shape[1:]
        found: jax.Array = jax.lax.dynamic_slice_in_dim(self.values.reshape(-1, width), expert * size, size)
        return found

    def finish(self, sums: jax.Array, which: jax.Array | None = None) -> jax.Array:
        """What sums [R, out] of products stand for. which: of experts, each row's [R], or [1] where it is that of all."""
        return sums

    @property
    def precision(self) -> jax.lax.Precision | None:
        """Of the products: accelerators would round float32 to something less."""
        return jax.lax.Precision.HIGHEST if self.values.dtype == jnp.float32 else None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class ScaledWeight:
    """A weight [out, in] in int8 or FP8 (e4m3), with a scale for each output; of experts [E, out, in]. The rest is as above."""

    values: jax.Array
    scales: jax.Array  # [out] float32; of experts [E, out]
    gated: bool = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the values."""
        return self.values.shape

    def inputs(self, x: jax.Array) -> jax.Array:
        """See PlainWeight."""
        return x.astype(jnp.bfloat16)

    def operand(self, values: jax.Array) -> jax.Array:
        """See PlainWeight."""
        return values.astype(jnp.bfloat16)

    def of_expert(self, expert: jax.Array) -> jax.Array:
        """See PlainWeight; here it is the rows of one matrix that all would be widened of."""
        found: jax.Array = jax.lax.dynamic_index_in_dim(self.values, expert, keepdims=False)
        return found

    def finish(self, sums: jax.Array, which: jax.Array | None = None) -> jax.Array:
        """See PlainWeight."""
        return sums * (self.scales if which is None else self.scales[which])

    @property
    def precision(self) -> jax.lax.Precision | None:
        """See PlainWeight."""
        return None


Weight: TypeAlias = PlainWeight | ScaledWeight


def allocate(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """`platform.Allocate`."""
    return np.zeros(shape, dtype)


def place(array: npt.NDArray[Any]) -> jax.Array:
    """`platform.Place`: a copy."""
    return jnp.asarray(array)


def pack(
    weight: npt.NDArray[Any] | ScaledRows | BlockMatrix | Sequence[BlockMatrix],
    allocate: Allocate,  # noqa: ARG001 layers are not stacked
    *,
    gated: bool = False,
    dtype: FloatType = "bfloat16",
) -> Weight:
    """`platform.Pack`."""
    if isinstance(weight, ScaledRows):
        return ScaledWeight(weight.numbers, weight.scales, gated)  # type: ignore[arg-type]
    if not isinstance(weight, np.ndarray):
        weight = np.concatenate([part.values() for part in ([weight] if isinstance(weight, BlockMatrix) else weight)])
    return PlainWeight(weight.astype(jnp.dtype(dtype), copy=False), gated)  # type: ignore[arg-type]


def as_matrix(table: jax.Array | ScaledWeight) -> Weight:
    """`Products.as_matrix`: both are of one type, row by row."""
    return table if isinstance(table, ScaledWeight) else PlainWeight(table, gated=False)


def lookup(table: jax.Array | ScaledWeight, token_ids: jax.Array) -> jax.Array:
    """`platform.Lookup`."""
    if isinstance(table, ScaledWeight):
        return layers.lookup(table.values, token_ids) * table.scales[token_ids][:, None]
    return layers.lookup(table, token_ids)


def linear(
    x: jax.Array,
    weight: Weight,
    *,
    activation: Activation | None = None,
    num_rows: jax.Array | None = None,  # noqa: ARG001 padding is computed like the rest
    norm: Operand | None = None,
    eps: float = 0.0,
    residual: jax.Array | None = None,
) -> jax.Array:
    """`platform.Linear`: x is rounded to what the weight is of for the product, sums are float32."""
    if weight.gated != (activation is not None):
        raise ValueError(f"activation {activation} of a weight that is {'' if weight.gated else 'not '}gated")
    if norm is not None:
        x = rms_norm(x, value(norm), eps)
    rows = x.shape[0]
    if rows < _FEWEST_ROWS:
        x = jnp.pad(x, ((0, _FEWEST_ROWS - rows), (0, 0)))
    sides = (((1,), (1,)), ((), ()))
    values = weight.operand(weight.values)
    out = jax.lax.dot_general(weight.inputs(x), values, sides, precision=weight.precision, preferred_element_type=jnp.float32)
    out = weight.finish(out[:rows])
    if activation is not None:
        gate, up = jnp.split(out, 2, axis=-1)
        out = gated(activation, gate, up)
    return out if residual is None else out + residual


def greedy(logits: jax.Array, num_rows: jax.Array) -> jax.Array:  # noqa: ARG001 padding is searched like the rest
    """`platform.Greedy`."""
    return sampler.greedy(logits)


def pick(logits: jax.Array, rows: jax.Array, bits: jax.Array) -> jax.Array:
    """`platform.Pick`: of all rows, since to take some out of so large an array costs more."""
    return sampler.greedy(mask(logits, rows, bits)).at[rows].get(mode="fill", fill_value=-1)


def mask(logits: jax.Array, rows: jax.Array, bits: jax.Array) -> jax.Array:
    """`platform.Mask`."""
    return jnp.where(allowed_in_rows(logits, rows, bits), logits, -jnp.inf)


def allowed_in_rows(logits: jax.Array, rows: jax.Array, bits: jax.Array) -> jax.Array:
    """`Mask`'s operands -> what each row of a step allows, as booleans [R, V]: those without a mask everything."""
    words = jnp.full((len(logits), bits.shape[1]), 0xFFFFFFFF, jnp.uint32).at[rows].set(bits, mode="drop")
    return allowed_tokens(words, logits.shape[1])
