"""Matrix products in plain XLA: bfloat16 weights as they are."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy.typing as npt

from tpu_worker.models.layers import rms_norm
from tpu_worker.stacking import Operand, value

_FEWEST_ROWS = 4  # XLA's CPU leaves its fast path for bfloat16 below this (about 10 times slower)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class PlainWeight:
    """A weight [out, in] in bfloat16, as it is."""

    values: jax.Array
    gated: bool = field(metadata={"static": True})


def pack(weight: npt.ArrayLike, *, gated: bool = False) -> PlainWeight:
    """`kernels.Pack` for XLA."""
    return PlainWeight(jnp.asarray(np.asarray(weight).astype(ml_dtypes.bfloat16, copy=False)), gated)


def linear(
    x: jax.Array,
    weight: PlainWeight,
    *,
    num_rows: jax.Array | None = None,  # noqa: ARG001 padding is computed like the rest
    norm: Operand | None = None,
    eps: float = 0.0,
    residual: jax.Array | None = None,
) -> jax.Array:
    """`kernels.Linear` for XLA: x is rounded to bfloat16 for the product, sums are float32."""
    if norm is not None:
        x = rms_norm(x, value(norm), eps)
    rows = x.shape[0]
    if rows < _FEWEST_ROWS:
        x = jnp.pad(x, ((0, _FEWEST_ROWS - rows), (0, 0)))
    sides = (((1,), (1,)), ((), ()))
    out = jax.lax.dot_general(x.astype(jnp.bfloat16), weight.values, sides, preferred_element_type=jnp.float32)[:rows]
    if weight.gated:
        gate, up = jnp.split(out, 2, axis=-1)
        out = jax.nn.silu(gate) * up
    return out if residual is None else out + residual
