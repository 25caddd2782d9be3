"""Tiny Hugging Face directories with weights of few bits, as tools write them, and the weights that they stand for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from tests.tpu_worker.tiny_models import CONFIG, Tensors

WIDE = {**CONFIG, "hidden_size": 128, "intermediate_size": 256}  # whole groups of 128 inputs everywhere
FLOAT8 = ml_dtypes.float8_e4m3fn
Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]
# Of a module's weight [out, in]: the tensors that a file has for it, by what follows the module's name, and what they stand for.
Store = Callable[[Floats, np.random.Generator], tuple[Tensors, Floats]]


@dataclass(frozen=True)
class Format:
    """One way to store weights: what config.json says of it, and how a weight is stored."""

    config: Mapping[str, Any]
    store: Store
    kind: str  # of the blocks that the C++ kernels keep, or a name that they do not know


def is_quantised(name: str) -> bool:
    """Whether tools quantise this tensor unless told otherwise: matrices of layers, but no routers."""
    parts = name.split(".")
    return ("layers" in parts and name.endswith("_proj.weight")) or ".experts." in name


def quantise_tensors(
    form: Format, tensors: Tensors, chosen: Callable[[str], bool] = is_quantised, seed: int = 1
) -> tuple[Tensors, Tensors]:
    """What a file has for these tensors, and the float32 tensors that this stands for."""
    rng = np.random.default_rng(seed)
    stored: Tensors = {}
    meant: Tensors = {}
    for name, values in tensors.items():
        if not chosen(name):
            stored[name], meant[name] = values, values.astype(np.float32)
            continue
        tensors_of, stands_for = form.store(values.astype(np.float32), rng)
        meant[name] = np.ascontiguousarray(stands_for)
        stored |= {f"{name.removesuffix('weight')}{kind}": np.ascontiguousarray(one) for kind, one in tensors_of.items()}
    return stored, meant


def grouped(weight: Floats, rows: int | None, columns: int | None, of: Callable[[Floats], Any]) -> Floats:
    """A number of each group of weights, of so many rows and columns (None: all), of what is left at the ends too."""
    out, width = weight.shape
    rows, columns = rows or out, columns or width
    found = [
        [of(weight[first : first + rows, left : left + columns]) for left in range(0, width, columns)]
        for first in range(0, out, rows)
    ]
    return np.array(found, np.float32)


def spread(of_groups: npt.NDArray[Any], shape: tuple[int, int], rows: int | None, columns: int | None) -> npt.NDArray[Any]:
    """The number of its group for each weight."""
    at_row, at_column = np.arange(shape[0]) // (rows or shape[0]), np.arange(shape[1]) // (columns or shape[1])
    found: npt.NDArray[Any] = of_groups[at_row[:, None], at_column[None, :]]
    return found


def words(numbers: Numbers, bits: int, order: Sequence[int]) -> npt.NDArray[np.int32]:
    """Rows of numbers as rows of int32, the first of `order` in the lowest bits of each word; filled up with zeros."""
    each = 32 // bits
    padded = np.zeros((len(numbers), -(-numbers.shape[1] // each) * each), np.int64)
    padded[:, : numbers.shape[1]] = numbers
    packed = np.zeros((len(numbers), padded.shape[1] // each), np.uint32)
    for place, which in enumerate(order):
        packed |= (padded[:, which::each] << bits * place).astype(np.uint32)
    return packed.view(np.int32)


def straight(bits: int) -> Sequence[int]:
    return range(32 // bits)


def float8(rows: int | None, columns: int | None, name: str, dtype: Any = np.float32, *, flat: bool = False, **more: Any) -> Store:
    """`more`: scales of activations."""

    def store(weight: Floats, rng: np.random.Generator) -> tuple[Tensors, Floats]:
        scales = grouped(weight, rows, columns, lambda one: max(np.abs(one).max(), 1e-4) / 448).astype(dtype)
        each = spread(scales.astype(np.float32), weight.shape, rows, columns)
        numbers = (weight / each).clip(-448, 448).astype(FLOAT8)
        shaped = scales.reshape(-1) if flat else scales
        return {"weight": numbers, name: shaped, **more}, numbers.astype(np.float32) * each

    return store


def integers(
    bits: int,
    rows: int | None,
    columns: int | None,
    *,
    symmetric: bool,
    packed: bool,
    dtype: Any = ml_dtypes.bfloat16,
    shuffled: bool = False,
) -> Store:
    """compressed-tensors. shuffled: groups are of inputs in an order of their own."""
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1

    def store(weight: Floats, rng: np.random.Generator) -> tuple[Tensors, Floats]:
        width = weight.shape[1]
        order = rng.permutation(width) if shuffled else np.arange(width)
        sorted_ = weight[:, order]
        lowest, highest = (grouped(sorted_, rows, columns, of) for of in (np.min, np.max))
        if symmetric:
            scales, zeros = np.maximum(highest, -lowest) / high, np.zeros_like(lowest)
        else:
            scales = (highest - lowest) / (high - low)
            zeros = np.rint(low - lowest / scales).clip(low, high)
        scales = scales.astype(dtype)
        shape = weight.shape
        each, zero = (spread(one.astype(np.float32), shape, rows, columns) for one in (scales, zeros))
        numbers = np.rint(sorted_ / each + zero).clip(low, high)
        back = np.argsort(order)
        meant = ((numbers - zero) * each)[:, back].astype(np.float32)
        in_order = numbers[:, back].astype(np.int64)
        tensors: Tensors = {"weight_scale": scales if scales.size > 1 else scales.reshape(1)}
        if packed:
            tensors["weight_packed"] = words(in_order - low, bits, straight(bits))
            tensors["weight_shape"] = np.array(shape, np.int64)
            if not symmetric:
                raised = zeros.astype(np.int64) - low
                tensors["weight_zero_point"] = words(raised.T, bits, straight(bits)).T
        else:
            tensors["weight"] = in_order.astype(np.int8)
            if not symmetric:
                tensors["weight_zero_point"] = zeros.astype(np.int8).reshape(tensors["weight_scale"].shape)
        if shuffled:
            tensors["weight_g_idx"] = (back // (columns or width)).astype(np.int32)
        return tensors, meant

    return store


def _grouped_integers(
    weight: Floats, bits: int, group: int, order: npt.NDArray[np.intp], *, symmetric: bool = False
) -> tuple[Numbers, Numbers, npt.NDArray[np.float16], Floats]:
    """As AWQ and GPTQ quantise: numbers [out, in], zero points and scales [out, groups], and what they stand for [out, in]."""
    largest = (1 << bits) - 1
    sorted_ = weight[:, order]
    lowest, highest = (grouped(sorted_, 1, group, of) for of in (np.min, np.max))
    lowest, highest = np.minimum(lowest, 0), np.maximum(highest, 0)
    if symmetric:
        highest = np.maximum(highest, -lowest)
        lowest = -highest
    scales = np.maximum((highest - lowest) / largest, 1e-4).astype(np.float16)
    zeros = np.full_like(lowest, (largest + 1) // 2) if symmetric else np.rint(-lowest / scales)
    each, zero = (spread(one.astype(np.float32), weight.shape, 1, group) for one in (scales, zeros))
    numbers = np.rint(sorted_ / each + zero).clip(0, largest)
    back = np.argsort(order)
    meant = ((numbers - zero) * each)[:, back].astype(np.float32)
    return numbers[:, back].astype(np.int64), zeros.astype(np.int64), scales, meant


def awq(group: int) -> Store:
    def store(weight: Floats, rng: np.random.Generator) -> tuple[Tensors, Floats]:
        size = weight.shape[1] if group == -1 else group
        numbers, zeros, scales, meant = _grouped_integers(weight, 4, size, np.arange(weight.shape[1]))
        order = (0, 2, 4, 6, 1, 3, 5, 7)
        return {"qweight": words(numbers.T, 4, order), "qzeros": words(zeros.T, 4, order), "scales": scales.T}, meant

    return store


def gptq(bits: int, group: int, *, symmetric: bool = True, offset: int = 1, shuffled: bool = False, indices: bool = True) -> Store:
    """offset: what is taken from zero points before they are stored. shuffled: in the order of an activation's sizes."""

    def store(weight: Floats, rng: np.random.Generator) -> tuple[Tensors, Floats]:
        width = weight.shape[1]
        size = width if group == -1 else group
        order = rng.permutation(width) if shuffled else np.arange(width)
        numbers, zeros, scales, meant = _grouped_integers(weight, bits, size, order, symmetric=symmetric)
        stored = (zeros - offset) % (1 << bits)
        tensors: Tensors = {
            "qweight": words(numbers, bits, straight(bits)).T,
            "qzeros": words(stored.T, bits, straight(bits)),
            "scales": scales.T,
        }
        if indices:
            tensors["g_idx"] = (np.argsort(order) // size).astype(np.int32)
        return tensors, meant

    return store


def compressed(weights: Mapping[str, Any], format_: str, **more: Any) -> dict[str, Any]:
    """What config.json says of compressed-tensors."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": more.pop("input_activations", None)}
    return {
        "quant_method": "compressed-tensors",
        "format": format_,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        **more,
    }


def _weights(bits: int, kind: str, strategy: str, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": True, "dynamic": False, **more}


_BF16 = ml_dtypes.bfloat16
_ONE = np.full(1, 0.02, np.float32)
_FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True, "checkpoint_format": "gptq"}
_AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm", "modules_to_not_convert": None}
_TOKENS = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}

FORMATS: dict[str, Format] = {
    "fp8 blocks": Format({**_FP8, "weight_block_size": [128, 128]}, float8(128, 128, "weight_scale_inv"), "FP8_128"),
    "fp8 blocks of bf16 scales": Format(
        {**_FP8, "weight_block_size": [64, 32]}, float8(64, 32, "weight_scale_inv", _BF16), "FP8_32"
    ),
    "fp8 tensor": Format(
        {"quant_method": "fp8", "activation_scheme": "static"},
        float8(None, None, "weight_scale", flat=True, input_scale=_ONE),
        "FP8_128",
    ),
    "fp8 tensor, as Mistral has it": Format(
        {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None},
        float8(None, None, "weight_scale_inv", _BF16, flat=True, activation_scale=_ONE),
        "FP8_128",
    ),
    "float-quantized channel": Format(
        compressed(_weights(8, "float", "channel"), "float-quantized", input_activations=_TOKENS),
        float8(1, None, "weight_scale", _BF16),
        "FP8_128",
    ),
    "float-quantized tensor": Format(
        compressed(_weights(8, "float", "tensor"), "naive-quantized", input_activations={**_TOKENS, "dynamic": False}),
        float8(None, None, "weight_scale", _BF16, flat=True, input_scale=_ONE),
        "FP8_128",
    ),
    "float-quantized block": Format(
        compressed(_weights(8, "float", "block", block_structure=[128, 128]), "float-quantized"),
        float8(128, 128, "weight_scale"),
        "FP8_128",
    ),
    "int-quantized channel": Format(
        compressed(_weights(8, "int", "channel"), "int-quantized", input_activations={**_TOKENS, "type": "int"}),
        integers(8, 1, None, symmetric=True, packed=False),
        "INT8_128",
    ),
    "int-quantized tensor": Format(
        compressed(_weights(8, "int", "tensor"), "int-quantized"), integers(8, None, None, symmetric=True, packed=False), "INT8_128"
    ),
    "int-quantized group, asymmetric": Format(
        compressed(_weights(8, "int", "group", group_size=32, symmetric=False), "int-quantized"),
        integers(8, 1, 32, symmetric=False, packed=False, dtype=np.float32),
        "INT8_32",
    ),
    "pack-quantized group": Format(
        compressed(_weights(4, "int", "group", group_size=128), "pack-quantized"),
        integers(4, 1, 128, symmetric=True, packed=True),
        "INT4_128",
    ),
    "pack-quantized group, asymmetric": Format(
        compressed(_weights(4, "int", "group", group_size=32, symmetric=False), "pack-quantized"),
        integers(4, 1, 32, symmetric=False, packed=True),
        "INT4_32",
    ),
    "pack-quantized channel": Format(
        compressed(_weights(4, "int", "channel"), "pack-quantized"), integers(4, 1, None, symmetric=True, packed=True), "INT4_128"
    ),
    "pack-quantized group, reordered": Format(
        compressed(_weights(4, "int", "group", group_size=64, symmetric=False, actorder="group"), "pack-quantized"),
        integers(4, 1, 64, symmetric=False, packed=True, shuffled=True),
        "INT4",
    ),
    "pack-quantized of 8 bits": Format(
        compressed(_weights(8, "int", "group", group_size=64, symmetric=False), "pack-quantized"),
        integers(8, 1, 64, symmetric=False, packed=True),
        "INT8_32",
    ),
    "awq": Format(_AWQ, awq(128), "INT4_128"),
    "awq of small groups": Format({**_AWQ, "group_size": 32}, awq(32), "INT4_32"),
    "awq of channels": Format({**_AWQ, "group_size": -1}, awq(-1), "INT4_128"),
    "gptq": Format(_GPTQ, gptq(4, 128), "INT4_128"),
    "gptq without indices": Format({**_GPTQ, "checkpoint_format": None}, gptq(4, 128, indices=False), "INT4_128"),
    "gptq, asymmetric": Format({**_GPTQ, "group_size": 64, "sym": False}, gptq(4, 64, symmetric=False), "INT4_32"),
    "gptq of the second version": Format(
        {**_GPTQ, "group_size": 32, "sym": False, "checkpoint_format": "gptq_v2"}, gptq(4, 32, symmetric=False, offset=0), "INT4_32"
    ),
    "gptq, reordered": Format({**_GPTQ, "group_size": 32, "desc_act": True}, gptq(4, 32, shuffled=True), "INT4"),
    "gptq of 8 bits": Format({**_GPTQ, "bits": 8}, gptq(8, 128), "INT8_128"),
    "gptq of 8 bits, asymmetric, of channels": Format(
        {**_GPTQ, "bits": 8, "group_size": -1, "sym": False}, gptq(8, -1, symmetric=False), "INT8_128"
    ),
}
