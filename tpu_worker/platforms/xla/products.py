"""Matrix products in plain XLA: bfloat16 weights as they are."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy.typing as npt

from tpu_worker import sampler
from tpu_worker.models.layers import Activation, activate, rms_norm
from tpu_worker.platforms.platform import Allocate
from tpu_worker.stacking import Operand, value
from tpu_worker.weights.blocks import BlockMatrix

_FEWEST_ROWS = 4  # XLA's CPU leaves its fast path for bfloat16 below this (about 10 times slower)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class PlainWeight:
    """A weight [out, in] in bfloat16, as it is."""

    values: jax.Array
    gated: bool = field(metadata={"static": True})


def allocate(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """`platform.Allocate`."""
    return np.zeros(shape, dtype)


def place(array: npt.NDArray[Any]) -> jax.Array:
    """`platform.Place`: a copy."""
    return jnp.asarray(array)


def pack(
    weight: npt.NDArray[Any] | BlockMatrix,
    allocate: Allocate,  # noqa: ARG001 layers are not stacked
    *,
    gated: bool = False,
) -> PlainWeight:
    """`platform.Pack`."""
    values = weight.values() if isinstance(weight, BlockMatrix) else weight
    return PlainWeight(values.astype(ml_dtypes.bfloat16, copy=False), gated)  # type: ignore[arg-type]


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
    """`platform.Linear`: x is rounded to bfloat16 for the product, sums are float32."""
    if weight.gated != (activation is not None):
        raise ValueError(f"activation {activation} of a weight that is {'' if weight.gated else 'not '}gated")
    if norm is not None:
        x = rms_norm(x, value(norm), eps)
    rows = x.shape[0]
    if rows < _FEWEST_ROWS:
        x = jnp.pad(x, ((0, _FEWEST_ROWS - rows), (0, 0)))
    sides = (((1,), (1,)), ((), ()))
    out = jax.lax.dot_general(x.astype(jnp.bfloat16), weight.values, sides, preferred_element_type=jnp.float32)[:rows]
    if activation is not None:
        gate, up = jnp.split(out, 2, axis=-1)
        out = activate(activation, gate) * up
    return out if residual is None else out + residual


def greedy(logits: jax.Array, num_rows: jax.Array) -> jax.Array:  # noqa: ARG001 padding is searched like the rest
    """`platform.Greedy`."""
    return sampler.greedy(logits)
