"""Matrix products for the CPU: weights of bf16 or in blocks of few bits, f32 everything else, in C++ (native/).

Where the machine multiplies bf16 by bf16 (AVX512-BF16), twice as fast as f32, inputs are rounded to bf16 too, but for those that
are large beside the others of their row, or the largest of their block, which keep about 16 bits. Sums stay f32.

Every element of a product is added up in an order that depends on its row's inputs and on the shape of the weight only, whatever
the number of rows, the rows beside it or the number of threads: a row of `linear` has the same bits in every batch and bucket.
"""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from protocol.config import Quantization
from tpu_worker.models.layers import Activation
from tpu_worker.platforms.cpu.arena import process_arena
from tpu_worker.platforms.cpu.native import build
from tpu_worker.platforms.platform import Allocate
from tpu_worker.stacking import Operand, find
from tpu_worker.weights.blocks import BLOCK, BlockMatrix, quantise

# As native/gemm.h numbers them; 0 is none.
ACTIVATIONS: Mapping[Activation | None, int] = MappingProxyType({None: 0, "silu": 1, "gelu_tanh": 2, "clamped_swiglu": 3})


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight [out, in] cut into panels of C output features, laid out in the order in which the kernel reads them."""

    # [P, in, C] uint16 (bf16), [P, ceil(in / 2), C] uint32 (two inputs' bf16), or [P, ceil(in / 32), bytes] uint8 (native/blocks.h)
    panels: Operand
    in_features: int = field(metadata={"static": True})
    out_features: int = field(metadata={"static": True})  # of the result: half the rows of the weight if gated
    gated: bool = field(metadata={"static": True})  # panels alternate between gate and up


def allocate(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """`platform.Allocate`: on huge pages."""
    return process_arena().zeros(shape, dtype)


def place(array: npt.NDArray[Any]) -> jax.Array:
    """`platform.Place`: the memory itself, where NumPy can share the type."""
    placed: jax.Array = jax.dlpack.from_dlpack(array) if array.dtype.isbuiltin == 1 else jnp.asarray(array)
    return placed


def rounds_inputs() -> bool:
    """Whether `linear` rounds inputs before it multiplies them with bf16 weights, as this machine does it fastest."""
    return bool(build.library("matmul").twodeep_dots_pairs())


def pack(weight: npt.ArrayLike | BlockMatrix, *, quantization: Quantization = "auto", gated: bool = False) -> PackedWeight:
    """Packs a weight [out, in] of any float type, or one that is in blocks already.

    quantization "auto" leaves blocks as they are and rounds floats to bf16, to nearest even; "none" makes bf16 of both; "int8"
    leaves blocks, too, but makes blocks of floats, as `blocks.quantise` does. gated: the first half of the rows is the gate
    projection, the second half the up projection, and `linear` returns activation(gate) * up. Releases the interpreter lock: pack
    several weights on several threads.
    """
    placed = pack_into(weight, allocate, quantization=quantization, gated=gated)
    packed: PackedWeight = jax.tree.map(place, placed)
    return packed


def pack_into(
    weight: npt.ArrayLike | BlockMatrix, allocate: Allocate, *, quantization: Quantization = "auto", gated: bool = False
) -> PackedWeight:
    """`pack`, but the arrays are NumPy's and the caller's."""
    source = weight if isinstance(weight, BlockMatrix) else np.asarray(weight)
    rows, width = source.shape
    if gated and rows % 2:
        raise ValueError(f"a gated weight has as many gate rows as up rows, this one has {rows} in all")
    features = rows // 2 if gated else rows
    num_panels = -(-features // build.library("matmul").twodeep_panel_columns()) * (2 if gated else 1)
    if quantization == "int8" and not isinstance(source, BlockMatrix):
        source = quantise(source)
    if quantization != "none" and isinstance(source, BlockMatrix):
        panels = _pack_blocks(source, num_panels, allocate, gated)
    else:
        panels = _pack_bf16(source, num_panels, allocate, gated)
    return PackedWeight(panels, width, features, gated)  # type: ignore[arg-type]


def _pack_blocks(weight: BlockMatrix, num_panels: int, allocate: Allocate, gated: bool) -> npt.NDArray[Any]:
    library = build.library("blocks")
    panels = allocate((num_panels, weight.shape[1] // BLOCK, library.twodeep_block_bytes(weight.bits)), np.uint8)
    library.twodeep_pack_blocks(*_parts(weight, np.float16), *map(ctypes.c_int, (*weight.shape, gated)), _pointer(panels))
    return panels


def _pack_bf16(weight: npt.NDArray[Any] | BlockMatrix, num_panels: int, allocate: Allocate, gated: bool) -> npt.NDArray[Any]:
    library = build.library("matmul")
    columns: int = library.twodeep_panel_columns()
    width = weight.shape[1]
    if rounds_inputs():
        panels = allocate((num_panels, -(-width // 2), columns), np.uint32)
    else:
        panels = allocate((num_panels, width, columns), np.uint16)
    sizes = map(ctypes.c_int, (*weight.shape, gated))
    if isinstance(weight, BlockMatrix):
        library.twodeep_pack_dequantised(*_parts(weight, np.float32), *sizes, _pointer(panels))
    else:
        narrow = weight.dtype == jnp.bfloat16
        floats = weight.view(np.uint16) if narrow else weight.astype(np.float32, copy=False)
        library.twodeep_pack(_pointer(floats), ctypes.c_int(narrow), *sizes, _pointer(panels))
    return panels


def _parts(weight: BlockMatrix, dtype: npt.DTypeLike) -> tuple[ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]:
    """Quants, scales and minima or null, the latter as this type."""
    minima = None if weight.minima is None else weight.minima.astype(dtype, copy=False)
    return _pointer(weight.quants), _pointer(weight.scales.astype(dtype, copy=False)), _pointer(minima)


def _pointer(array: npt.NDArray[Any] | None) -> ctypes.c_void_p:
    """To its elements in order, perhaps of a copy, which lives as long as the pointer."""
    return ctypes.c_void_p() if array is None else np.ascontiguousarray(array).ctypes.data_as(ctypes.c_void_p)


def linear(
    x: jax.Array,
    weight: PackedWeight,
    *,
    activation: Activation | None = None,
    num_rows: jax.Array | None = None,
    norm: Operand | None = None,
    eps: float = 0.0,
    residual: jax.Array | None = None,
) -> jax.Array:
    """x [T, in] f32 times weight -> [T, out] f32, in one call to C++ with what surrounds the product in a transformer.

    num_rows: [] or [1] int32; rows from there on are padding: they cost nothing, are never read, and come out as anything.
    activation: of the gate, for a gated weight. norm: [in] f32, of the same layer as the weight; x becomes
    x / sqrt(mean(x²) + eps) * norm first. residual: [T, out] f32, added to the result.
    """
    if weight.gated != (activation is not None):
        raise ValueError(f"activation {activation} of a weight that is {'' if weight.gated else 'not '}gated")
    panels, layer = find(weight.panels)
    in_blocks = panels.dtype == jnp.uint8
    build.library("blocks" if in_blocks else "matmul")
    tokens, width = x.shape
    if width != weight.in_features:
        raise ValueError(f"the weight is not packed for inputs of width {width}, but of {weight.in_features}")
    nothing = jnp.zeros((0,), jnp.float32)
    rows = jnp.full((1,), tokens, jnp.int32) if num_rows is None else jnp.reshape(num_rows, (1,)).astype(jnp.int32)
    result = jax.ShapeDtypeStruct((tokens, weight.out_features), jnp.float32)
    product: jax.Array = jax.ffi.ffi_call("twodeep_linear_blocks" if in_blocks else "twodeep_linear", result)(
        x,
        panels,
        nothing if norm is None else find(norm)[0],
        nothing if residual is None else residual,
        rows,
        layer,
        eps=np.float32(eps),
        activation=np.int32(ACTIVATIONS[activation]),
    )
    return product


def greedy(logits: jax.Array, num_rows: jax.Array) -> jax.Array:
    """`sampler.greedy` of the first num_rows [] rows of logits [R, V] f32 -> [R] int32, 0 for the others, which are never read."""
    build.library("matmul")
    tokens: jax.Array = jax.ffi.ffi_call("twodeep_greedy", jax.ShapeDtypeStruct(logits.shape[:1], jnp.int32))(
        logits, jnp.reshape(num_rows, (1,)).astype(jnp.int32)
    )
    return tokens


def pick(logits: jax.Array, rows: jax.Array, bits: jax.Array) -> jax.Array:
    """`platform.Pick`."""
    build.library("matmul")
    tokens: jax.Array = jax.ffi.ffi_call("twodeep_pick", jax.ShapeDtypeStruct(rows.shape, jnp.int32))(logits, rows, bits)
    return tokens


def mask(logits: jax.Array, rows: jax.Array, bits: jax.Array) -> jax.Array:
    """`platform.Mask`."""
    build.library("matmul")
    shape = jax.ShapeDtypeStruct(logits.shape, logits.dtype)
    masked: jax.Array = jax.ffi.ffi_call("twodeep_mask", shape, input_output_aliases={0: 0})(logits, rows, bits)
    return masked
