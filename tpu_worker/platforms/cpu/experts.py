"""The products of a mixture of experts for the CPU, in C++ (native/experts.h): weights as `products` has them, expert by expert.

A step reads the weights of the experts that some token chose, and of no others. A token's choices are added up in their order, so a
row of `experts` has the same bits in every batch and bucket, as one of `linear` has.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from protocol.config import FloatType, Quantization
from tpu_worker.models.layers import Activation
from tpu_worker.platforms.cpu.native import build
from tpu_worker.platforms.cpu.products import ACTIVATIONS, PackedWeight, kind_number, pack_one
from tpu_worker.platforms.platform import Allocate, HostArray
from tpu_worker.stacking import Operand, find
from tpu_worker.weights.blocks import BlockMatrix


def pack_experts(
    read: Callable[[int], HostArray | BlockMatrix],
    num_experts: int,
    allocate: Allocate,
    *,
    gated: bool = False,
    quantization: Quantization = "auto",
    dtype: FloatType = "bfloat16",
) -> PackedWeight:
    """`platform.PackExperts`: panels as those of `products.pack`, [experts, ...]."""
    panels: npt.NDArray[Any] | None = None
    packed: PackedWeight | None = None
    for expert in range(num_experts):

        def mine(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
            nonlocal panels
            if panels is None:
                panels = allocate((num_experts, *shape), dtype)
            assert (panels.shape[1:], panels.dtype) == (shape, np.dtype(dtype))
            return panels[expert]  # type: ignore[no-any-return] # noqa: B023 called at once

        packed = pack_one(read(expert), mine, quantization=quantization, dtype=dtype, gated=gated)
    assert packed is not None
    return replace(packed, panels=panels)  # type: ignore[arg-type]


def experts(
    x: jax.Array,
    chosen: jax.Array,
    shares: jax.Array,
    gate_up: PackedWeight,
    down: PackedWeight,
    *,
    activation: Activation,
    num_rows: jax.Array,
    norm: Operand | None = None,
    eps: float = 0.0,
    gate_up_bias: Operand | None = None,
    down_bias: Operand | None = None,
    residual: jax.Array | None = None,
) -> jax.Array:
    """`platform.Experts`."""
    inner = _multiply(x, gate_up, chosen, None, num_rows, bias=gate_up_bias, norm=norm, eps=eps, activation=activation)
    return _multiply(inner, down, chosen, shares, num_rows, bias=down_bias, residual=residual)


def _multiply(
    x: jax.Array,
    weight: PackedWeight,
    chosen: jax.Array,
    shares: jax.Array | None,
    num_rows: jax.Array,
    *,
    bias: Operand | None,
    norm: Operand | None = None,
    eps: float = 0.0,
    activation: Activation | None = None,
    residual: jax.Array | None = None,
) -> jax.Array:
    """Of T tokens that chose C experts each: without shares x [T, in] -> [T * C, out], with them x [T * C, in] -> [T, out]."""
    if weight.gated != (activation is not None):
        raise ValueError(f"activation {activation} of weights that are {'' if weight.gated else 'not '}gated")
    if x.shape[1] != weight.in_features:
        raise ValueError(f"the weights are not packed for inputs of width {x.shape[1]}, but of {weight.in_features}")
    panels, layer = find(weight.panels)
    build.library(f"matmul{weight.suffix}")
    of_kind = {} if weight.kind is None else {"kind": kind_number(weight.kind, weight.suffix)}
    nothing = jnp.zeros((0,), jnp.float32)
    result = jax.ShapeDtypeStruct((chosen.size if shares is None else len(chosen), weight.out_features), jnp.float32)
    product: jax.Array = jax.ffi.ffi_call(f"twodeep_experts{'_blocks' if of_kind else ''}{weight.suffix}", result)(
        x,
        panels,
        nothing if norm is None else find(norm)[0],
        nothing if bias is None else find(bias)[0],
        chosen.astype(jnp.int32),
        nothing if shares is None else shares,
        nothing if residual is None else residual,
        jnp.reshape(num_rows, (1,)).astype(jnp.int32),
        layer,
        eps=np.float32(eps),
        activation=np.int32(ACTIVATIONS[activation]),
        **of_kind,
    )
    return product


def scores(x: jax.Array, weight: Operand, *, num_rows: jax.Array, norm: Operand | None = None, eps: float = 0.0) -> jax.Array:
    """`platform.Scores`."""
    build.library("matmul")
    weights, layer = find(weight)
    result = jax.ShapeDtypeStruct((len(x), weights.shape[1]), jnp.float32)
    product: jax.Array = jax.ffi.ffi_call("twodeep_scores", result)(
        x,
        weights,
        jnp.zeros((0,), jnp.float32) if norm is None else find(norm)[0],
        jnp.reshape(num_rows, (1,)).astype(jnp.int32),
        layer,
        eps=np.float32(eps),
    )
    return product
