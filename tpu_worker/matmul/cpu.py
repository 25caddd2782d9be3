"""Matrix products for the CPU: bf16 or int8 weights, f32 everything else, in C++ (tpu_worker/native/matmul.cc).

Where the machine multiplies bf16 by bf16 (AVX512-BF16), twice as fast as f32, inputs of bf16 weights are rounded to bf16 too, but
for those that are large beside the others of their row, which keep about 16 bits. Sums stay f32.

Every element of a product is one chain of fused multiply-adds in the order of the input features, whatever the number of rows, the
rows beside it or the number of threads: a row of `linear` has the same bits in every batch and in every bucket.
"""

import ctypes
from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from tpu_worker.native import build
from tpu_worker.native.memory import Allocate, process_arena
from tpu_worker.stacking import Operand, find

Kind = Literal["bf16", "int8"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight [out, in] cut into panels of C output features, laid out in the order in which the kernel reads them."""

    panels: Operand  # [P, in, C] uint16 (bf16) or int8, or [P, ceil(in / 2), C] uint32 (two inputs' bf16)
    scales: Operand | None  # [P * C] f32, one per output feature: int8 only
    in_features: int = field(metadata={"static": True})
    out_features: int = field(metadata={"static": True})  # of the result: half the rows of the weight if gated
    gated: bool = field(metadata={"static": True})  # panels alternate between gate and up


def available() -> bool:
    """Whether the C++ kernels can be had on this machine; warns once, with the reason, if not."""
    return build.libraries() is not None


def rounds_inputs() -> bool:
    """Whether `linear` rounds inputs before it multiplies them with bf16 weights, as this machine does it fastest."""
    return bool(build.library("matmul").twodeep_dots_pairs())


def pack(weight: npt.ArrayLike, *, kind: Kind = "bf16", gated: bool = False) -> PackedWeight:
    """Packs a weight [out, in] of any float type, rounding to nearest even.

    gated: the first half of the rows is the gate projection, the second half the up projection, and `linear` returns
    silu(gate) * up. int8 rounds each output feature to 127 steps either side of zero. Releases the interpreter lock: pack
    several weights on several threads.
    """
    packed: PackedWeight = jax.tree.map(jax.dlpack.from_dlpack, pack_into(weight, process_arena().zeros, kind=kind, gated=gated))
    return packed


def pack_into(weight: npt.ArrayLike, allocate: Allocate, *, kind: Kind = "bf16", gated: bool = False) -> PackedWeight:
    """`pack`, but the arrays are NumPy's and the caller's."""
    library = build.library("matmul")
    source = np.asarray(weight)
    narrow = source.dtype == jnp.bfloat16
    source = np.ascontiguousarray(source.view(np.uint16) if narrow else source.astype(np.float32, copy=False))
    rows, width = source.shape
    if gated and rows % 2:
        raise ValueError(f"a gated weight has as many gate rows as up rows, this one has {rows} in all")
    columns: int = library.twodeep_panel_columns()
    features = rows // 2 if gated else rows
    num_panels = -(-features // columns) * (2 if gated else 1)
    pairs = kind == "bf16" and rounds_inputs()
    element = np.int8 if kind == "int8" else np.uint32 if pairs else np.uint16
    panels = allocate((num_panels, -(-width // 2) if pairs else width, columns), element)
    scales = allocate((num_panels * columns,), np.float32) if kind == "int8" else None
    library.twodeep_pack(
        ctypes.c_void_p(source.ctypes.data),
        ctypes.c_int(narrow),
        ctypes.c_int(rows),
        ctypes.c_int(width),
        ctypes.c_int(gated),
        ctypes.c_void_p(panels.ctypes.data),
        ctypes.c_void_p(None if scales is None else scales.ctypes.data),
    )
    return PackedWeight(panels, scales, width, features, gated)  # type: ignore[arg-type]


def linear(
    x: jax.Array,
    weight: PackedWeight,
    *,
    num_rows: jax.Array | None = None,
    norm: Operand | None = None,
    eps: float = 0.0,
    residual: jax.Array | None = None,
) -> jax.Array:
    """x [T, in] f32 times weight -> [T, out] f32, in one call to C++ with what surrounds the product in a transformer.

    num_rows: [] or [1] int32; rows from there on are padding: they cost nothing, are never read, and come out as anything.
    norm: [in] f32, of the same layer as the weight; x becomes x / sqrt(mean(x²) + eps) * norm first. residual: [T, out] f32, added
    to the result.
    """
    build.library("matmul")
    tokens, width = x.shape
    if width != weight.in_features:
        raise ValueError(f"the weight is not packed for inputs of width {width}, but of {weight.in_features}")
    nothing = jnp.zeros((0,), jnp.float32)
    panels, layer = find(weight.panels)
    rows = jnp.full((1,), tokens, jnp.int32) if num_rows is None else jnp.reshape(num_rows, (1,)).astype(jnp.int32)
    call = jax.ffi.ffi_call("twodeep_linear", jax.ShapeDtypeStruct((tokens, weight.out_features), jnp.float32))
    product: jax.Array = call(
        x,
        panels,
        nothing if weight.scales is None else find(weight.scales)[0],
        nothing if norm is None else find(norm)[0],
        nothing if residual is None else residual,
        rows,
        layer,
        eps=np.float32(eps),
        gated=weight.gated,
    )
    return product


def greedy(logits: jax.Array, num_rows: jax.Array) -> jax.Array:
    """`sampler.greedy` of the first num_rows [] rows of logits [R, V] f32 -> [R] int32, 0 for the others, which are never read."""
    build.library("matmul")
    tokens: jax.Array = jax.ffi.ffi_call("twodeep_greedy", jax.ShapeDtypeStruct(logits.shape[:1], jnp.int32))(
        logits, jnp.reshape(num_rows, (1,)).astype(jnp.int32)
    )
    return tokens
