"""Matrix products in plain XLA: weights of bfloat16, with which inputs are rounded too, or of float32, with which nothing is."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from protocol.config import FloatType
from tpu_worker import sampler
from tpu_worker.models.layers import Activation, gated, rms_norm
from tpu_worker.platforms.platform import Allocate
from tpu_worker.stacking import Operand, value
from tpu_worker.token_bits import allowed_tokens
from tpu_worker.weights.blocks import BlockMatrix

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

    @property
    def precision(self) -> jax.lax.Precision | None:
        """Of the products: accelerators would round float32 to something less."""
        return jax.lax.Precision.HIGHEST if self.values.dtype == jnp.float32 else None


def allocate(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """`platform.Allocate`."""
    return np.zeros(shape, dtype)


def place(array: npt.NDArray[Any]) -> jax.Array:
    """`platform.Place`: a copy."""
    return jnp.asarray(array)


def pack(
    weight: npt.NDArray[Any] | BlockMatrix | Sequence[BlockMatrix],
    allocate: Allocate,  # noqa: ARG001 layers are not stacked
    *,
    gated: bool = False,
    dtype: FloatType = "bfloat16",
) -> PlainWeight:
    """`platform.Pack`."""
    if not isinstance(weight, np.ndarray):
        weight = np.concatenate([part.values() for part in ([weight] if isinstance(weight, BlockMatrix) else weight)])
    return PlainWeight(weight.astype(jnp.dtype(dtype), copy=False), gated)  # type: ignore[arg-type]


def as_matrix(table: jax.Array) -> PlainWeight:
    """`Products.as_matrix`: both are of one type, row by row."""
    return PlainWeight(table, gated=False)


def linear(
    x: jax.Array,
    weight: PlainWeight,
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
    out = jax.lax.dot_general(
        weight.inputs(x), weight.values, sides, precision=weight.precision, preferred_element_type=jnp.float32
    )[:rows]
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
