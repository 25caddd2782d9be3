"""Writes the demo model's GGUF file again in the kinds of blocks that llama.cpp's quantiser chooses for Q4_K_M.

    python scripts/make_q4_k_m.py MODEL.gguf SmolLM2-135M-Instruct.Q4_K_M.gguf

Where rows are no whole blocks of 256, that is Q5_0 for Q4_K and Q8_0 for Q6_K. Numbers are rounded to the nearest, without the
searches for better scales that llama.cpp makes: sizes and speed are those of its files, answers are a little worse.
"""

import sys

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


def main() -> None:
    reader, writer = GGUFReader(sys.argv[1]), GGUFWriter(sys.argv[2], "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            writer.add_key_value(field.name, field.contents(), field.types[0], field.types[1] if len(field.types) > 1 else None)
    num_layers = reader.get_field("llama.block_count").contents()
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if values.ndim < 2:
            writer.add_tensor(tensor.name, values)
            continue
        kind = choose(tensor.name, values.shape[1], num_layers)
        if kind in (Kind.Q4_K, Kind.Q6_K):
            rows = (q4_k if kind == Kind.Q4_K else q6_k)(values).reshape(len(values), -1)
        else:
            rows = quantize(values, kind)
        writer.add_tensor(tensor.name, rows, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def choose(name: str, width: int, num_layers: int) -> Kind:
    """As `llama_tensor_get_type` and its fallbacks do (llama.cpp, llama-quant.cpp)."""
    whole = width % 256 == 0
    if name == "token_embd.weight":
        return Kind.Q6_K if whole else Kind.Q8_0
    layer, eighth = int(name.split(".")[1]), num_layers // 8
    with_more_bits = layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2
    if with_more_bits and (".attn_v." in name or ".ffn_down." in name):
        return Kind.Q6_K if whole else Kind.Q8_0
    return Kind.Q4_K if whole else Kind.Q5_0


def halves(values: Floats) -> Bytes:
    return values.astype(np.float16)[:, None].view(np.uint8)


def in_units(values: Floats, units: Floats, lowest: int, highest: int) -> Floats:
    """The nearest whole numbers of units, 0 where these are 0."""
    counts = np.divide(values, units, out=np.zeros_like(values), where=np.broadcast_to(units, values.shape) > 0)
    return np.clip(np.rint(counts), lowest, highest)


def q4_k(values: Floats) -> Bytes:
    blocks = values.reshape(-1, 8, 32)
    below = np.maximum(-blocks.min(axis=2), 0)
    steps = (blocks.max(axis=2) + below) / 15
    scale = (steps.max(axis=1) / 63).astype(np.float16).astype(np.float32)
    minimum = (below.max(axis=1) / 63).astype(np.float16).astype(np.float32)
    scales = in_units(steps, scale[:, None], 0, 63).astype(np.uint8)
    minima = in_units(below, minimum[:, None], 0, 63).astype(np.uint8)
    shifted = blocks + (minimum[:, None] * minima)[..., None]
    quants = in_units(shifted, (scale[:, None] * scales)[..., None], 0, 15).astype(np.uint8)
    multiples = [scales[:, :4] | (scales[:, 4:] >> 4 << 6), minima[:, :4] | (minima[:, 4:] >> 4 << 6)]
    multiples.append((scales[:, 4:] & 15) | ((minima[:, 4:] & 15) << 4))
    nibbles = (quants[:, 0::2] | (quants[:, 1::2] << 4)).reshape(-1, 128)
    return np.concatenate([halves(scale), halves(minimum), *multiples, nibbles], axis=1)


def q6_k(values: Floats) -> Bytes:
    groups = values.reshape(-1, 16, 16)
    steps = np.abs(groups).max(axis=2) / 31
    scale = (steps.max(axis=1) / 127).astype(np.float16).astype(np.float32)
    scales = in_units(steps, scale[:, None], 0, 127)
    quants = in_units(groups, (scale[:, None] * scales)[..., None], -32, 31) + 32
    a, b, c, d = np.moveaxis(quants.reshape(-1, 2, 4, 32).astype(np.uint8), 2, 0)
    low = np.concatenate([(a & 15) | ((c & 15) << 4), (b & 15) | ((d & 15) << 4)], axis=2).reshape(-1, 128)
    high = ((a >> 4) | (b >> 4 << 2) | (c >> 4 << 4) | (d >> 4 << 6)).reshape(-1, 64)
    return np.concatenate([low, high, scales.astype(np.int8).view(np.uint8), halves(scale)], axis=1)


if __name__ == "__main__":
    main()
