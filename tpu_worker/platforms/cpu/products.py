"""Matrix products for the CPU: weights of bf16, of f32 or in blocks of few bits, f32 everything else, in C++ (native/).

Where the machine multiplies bf16 by bf16 (AVX512-BF16), twice as fast as f32, inputs are rounded to bf16 too, but for those that
are large beside the others of their row, or the largest of their block, which keep about 16 bits. Sums stay f32. With weights of
f32 nothing is rounded.

Every element of a product is added up in an order that depends on its row's inputs and on the shape of the weight only, whatever
the number of rows, the rows beside it or the number of threads: a row of `linear` has the same bits in every batch and bucket.
"""

import ctypes
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from protocol.config import FloatType, Quantization
from tpu_worker.models.layers import Activation
from tpu_worker.platforms.cpu.arena import process_arena
from tpu_worker.platforms.cpu.native import build
from tpu_worker.platforms.platform import Allocate
from tpu_worker.stacking import Layer, Operand, find
from tpu_worker.weights.blocks import KINDS, BlockMatrix, quantise

# As native/gemm.h numbers them; 0 is none.
ACTIVATIONS: Mapping[Activation | None, int] = MappingProxyType({None: 0, "silu": 1, "gelu_tanh": 2, "clamped_swiglu": 3})


_MOST_PARTS = 4  # of a weight, as native/blocks.cc takes them


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight [out, in] cut into panels of C output features, laid out in the order in which the kernel reads them."""

    # [P, in, C] float32 or uint16 (bf16), [P, ceil(in / 2), C] uint32 (two inputs' bf16), or [P, units, bytes] uint8
    # (native/block_kinds.h)
    panels: Operand
    in_features: int = field(metadata={"static": True})
    out_features: int = field(metadata={"static": True})  # of the result: half the rows of the weight if gated
    gated: bool = field(metadata={"static": True})  # panels alternate between gate and up
    kind: str | None = field(metadata={"static": True}, default=None)  # of blocks; None: floats
    exact: bool = field(metadata={"static": True}, default=False)  # of blocks: inputs are not rounded

    @property
    def suffix(self) -> str:
        """Of the names of the custom calls that multiply with this weight."""
        if self.kind is not None:
            return build.FLOAT32 if self.exact else ""
        panels = self.panels.stack if isinstance(self.panels, Layer) else self.panels
        return build.FLOAT32 if panels.dtype == np.float32 else ""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class MixedWeight:
    """A weight whose rows are in blocks of several kinds: rows of one kind after those of another, or gates and what they gate."""

    parts: tuple[PackedWeight, ...]
    gated: bool = field(metadata={"static": True})  # there are two parts then, whose own panels do not alternate


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


Weight = npt.ArrayLike | BlockMatrix | Sequence[BlockMatrix]


def pack(
    weight: Weight, *, quantization: Quantization = "auto", dtype: FloatType = "bfloat16", gated: bool = False
) -> PackedWeight | MixedWeight:
    """Packs a weight [out, in] of any float type, or one that is in blocks already, of one kind or of several.

    quantization "auto" leaves blocks as they are and keeps floats as `dtype`, rounded to nearest even; "none" makes such floats of
    both; "int8" leaves blocks, too, but makes blocks of floats, as `blocks.quantise` does. With float32 inputs of products with
    blocks are not rounded either. gated: the first half of the rows is the gate projection, the second half the up projection, and
    `linear` returns activation(gate) * up. Releases the interpreter lock: pack several weights on several threads. Raises
    ValueError for what cannot be a weight.
    """
    placed = pack_into(weight, allocate, quantization=quantization, dtype=dtype, gated=gated)
    packed: PackedWeight | MixedWeight = jax.tree.map(place, placed)
    return packed


def pack_into(
    weight: Weight,
    allocate: Allocate,
    *,
    quantization: Quantization = "auto",
    dtype: FloatType = "bfloat16",
    gated: bool = False,
) -> PackedWeight | MixedWeight:
    """`pack`, but the arrays are NumPy's and the caller's."""
    parts = [part for part in weight if isinstance(part, BlockMatrix)] if isinstance(weight, Sequence) else []
    if not parts:
        return pack_one(weight, allocate, quantization=quantization, dtype=dtype, gated=gated)  # type: ignore[arg-type]
    if len(parts) == 1 or quantization == "none":
        whole = parts[0] if len(parts) == 1 else np.concatenate([part.values() for part in parts])
        return pack_one(whole, allocate, quantization=quantization, dtype=dtype, gated=gated)
    if len(parts) > (2 if gated else _MOST_PARTS) or (gated and parts[0].shape != parts[1].shape):
        raise ValueError(f"{len(parts)} kinds of blocks in a weight, of shapes {[part.shape for part in parts]}")
    return MixedWeight(tuple(pack_one(part, allocate, quantization=quantization, dtype=dtype) for part in parts), gated)


def pack_one(
    weight: npt.ArrayLike | BlockMatrix,
    allocate: Allocate,
    *,
    quantization: Quantization = "auto",
    dtype: FloatType = "bfloat16",
    gated: bool = False,
) -> PackedWeight:
    """`pack_into`, of one kind."""
    source = weight if isinstance(weight, BlockMatrix) else np.asarray(weight)
    rows, width = source.shape
    if gated and rows % 2:
        raise ValueError(f"a gated weight has as many gate rows as up rows, this one has {rows} in all")
    features = rows // 2 if gated else rows
    num_panels = -(-features // build.library("matmul").twodeep_panel_columns()) * (2 if gated else 1)
    if quantization == "int8" and not isinstance(source, BlockMatrix):
        source = quantise(source)
    if quantization != "none" and isinstance(source, BlockMatrix):
        panels = _pack_blocks(source, num_panels, allocate, dtype, gated)
        return PackedWeight(panels, width, features, gated, source.kind, dtype == "float32")  # type: ignore[arg-type]
    values = source.values() if isinstance(source, BlockMatrix) else source
    panels = _pack_floats(values, num_panels, allocate, dtype, gated)
    return PackedWeight(panels, width, features, gated)  # type: ignore[arg-type]


def _pack_blocks(weight: BlockMatrix, num_panels: int, allocate: Allocate, dtype: FloatType, gated: bool) -> npt.NDArray[Any]:
    library = build.library(weight.kind if dtype == "bfloat16" else f"{weight.kind}{build.FLOAT32}")
    units = weight.shape[1] // library.twodeep_unit_inputs()
    panels = allocate((num_panels, units, library.twodeep_unit_bytes()), np.uint8)
    library.twodeep_pack_blocks(_pointer(weight.rows), *map(ctypes.c_int, (*weight.shape, gated)), _pointer(panels))
    return panels


@functools.cache
def kind_number(kind: str, suffix: str) -> np.int32:
    """By which the kernels know a kind of blocks, whose library is loaded first. Raises BuildError if it cannot be had.

    suffix: of the names of the libraries.
    """
    make = build.library(f"{kind}{suffix}").twodeep_kind
    make.restype = ctypes.c_void_p
    if not build.library(f"blocks{suffix}").twodeep_add_kind(ctypes.c_int(KINDS[kind]), ctypes.c_void_p(make())):
        raise ValueError(f"{kind}: no room for it")
    return np.int32(KINDS[kind])


def _pack_floats(weight: npt.NDArray[Any], num_panels: int, allocate: Allocate, dtype: FloatType, gated: bool) -> npt.NDArray[Any]:
    library = build.library("matmul" if dtype == "bfloat16" else f"matmul{build.FLOAT32}")
    columns: int = library.twodeep_panel_columns()
    width = weight.shape[1]
    if dtype == "float32":
        panels = allocate((num_panels, width, columns), np.float32)
    elif rounds_inputs():
        panels = allocate((num_panels, -(-width // 2), columns), np.uint32)
    else:
        panels = allocate((num_panels, width, columns), np.uint16)
    narrow = weight.dtype == jnp.bfloat16
    floats = weight.view(np.uint16) if narrow else weight.astype(np.float32, copy=False)
    library.twodeep_pack(_pointer(floats), ctypes.c_int(narrow), *map(ctypes.c_int, (*weight.shape, gated)), _pointer(panels))
    return panels


def _pointer(array: npt.NDArray[Any]) -> ctypes.c_void_p:
    """To its elements in order, perhaps of a copy, which lives as long as the pointer."""
    return np.ascontiguousarray(array).ctypes.data_as(ctypes.c_void_p)


def linear(
    x: jax.Array,
    weight: PackedWeight | MixedWeight,
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
    parts = weight.parts if isinstance(weight, MixedWeight) else (weight,)
    panels, layer = find(parts[0].panels)
    suffix = parts[0].suffix
    if parts[0].kind is None:
        build.library(f"matmul{suffix}")
        name, of_kinds = f"twodeep_linear{suffix}", {}
    else:
        name, of_kinds = f"twodeep_linear_blocks{suffix}", _attributes(parts)
    tokens, width = x.shape
    if width != parts[0].in_features:
        raise ValueError(f"the weight is not packed for inputs of width {width}, but of {parts[0].in_features}")
    nothing = jnp.zeros((0,), jnp.float32)
    rows = jnp.full((1,), tokens, jnp.int32) if num_rows is None else jnp.reshape(num_rows, (1,)).astype(jnp.int32)
    features = parts[0].out_features if weight.gated else sum(part.out_features for part in parts)
    product: jax.Array = jax.ffi.ffi_call(name, jax.ShapeDtypeStruct((tokens, features), jnp.float32))(
        x,
        panels,
        nothing if norm is None else find(norm)[0],
        nothing if residual is None else residual,
        rows,
        layer,
        *(find(part.panels)[0] for part in parts[1:]),
        eps=np.float32(eps),
        activation=np.int32(ACTIVATIONS[activation]),
        **of_kinds,
    )
    return product


def _attributes(parts: Sequence[PackedWeight]) -> dict[str, np.int32]:
    """What native/blocks.cc asks of each part."""
    attributes = {f"kind{index}": np.int32(-1) for index in range(_MOST_PARTS)}
    for index, part in enumerate(parts):
        assert part.kind is not None
        attributes[f"kind{index}"] = kind_number(part.kind, part.suffix)
        attributes[f"outputs{index}"] = np.int32(part.out_features)
    return attributes


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
