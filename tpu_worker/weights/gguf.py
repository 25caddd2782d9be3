"""Weights from a GGUF file, memory-mapped, dequantised or in the blocks that they are held in."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize

from protocol.codec import Float32Array
from protocol.errors import ModelError
from protocol.gguf_header import TensorInfo, read_gguf_header
from tpu_worker.models.registry import model_from_gguf
from tpu_worker.models.rope import Rope
from tpu_worker.models.spec import Part, Within
from tpu_worker.weights.blocks import KINDS, BlockMatrix
from tpu_worker.weights.scaled_rows import NarrowType, ScaledRows
from tpu_worker.weights.source import check_all_used, check_shape, is_finite, missing_tensor, not_finite

_KIND_OF = {number: kind for kind, number in KINDS.items()}
# [rotary size // 2]: what each rotary frequency is divided by, always or by the length of sequences
_ROPE_FACTORS, _ROPE_LONG, _ROPE_SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"


class GgufSource:
    """Implements `WeightSource`."""

    def __init__(self, path: str | Path) -> None:
        """Raises ModelError unless the file is whole, so that one cut short is named before loading."""
        self._path = Path(path)
        self._header = read_gguf_header(path)
        self.model = model_from_gguf(self._path, self._header)
        used = {self._name(part) for group in self.model.parameters() for one in group.values() for part in one.parts}
        check_all_used(path, self.model, self._header.tensors.keys() - used - {_ROPE_FACTORS, _ROPE_LONG, _ROPE_SHORT})
        files = {info.path for info in self._header.tensors.values()}
        self._bytes = {file: np.memmap(file, np.uint8, mode="r") for file in files}

    def read(self, part: Part) -> npt.NDArray[Any]:
        """As the protocol says."""
        values = self._dequantise(self._name(part), self._find(part))
        order = self._row_order(part)
        return values if order is None else values[order]

    def stored_kind(self, part: Part) -> str | None:
        """As the protocol says."""
        info = self._header.tensors.get(self._name(part))
        return None if info is None else _KIND_OF.get(info.ggml_type)

    def read_blocks(self, part: Part) -> BlockMatrix:
        """As the protocol says."""
        info = self._find(part)
        blocks = BlockMatrix(_KIND_OF[info.ggml_type], self._rows(info))
        if not blocks.is_finite():
            raise not_finite(self._path, self._name(part))
        order = self._row_order(part)
        return blocks if order is None else blocks.take(order)

    def narrow_type(self, part: Part) -> NarrowType | None:
        """As the protocol says."""
        return None

    def read_narrow(self, part: Part) -> ScaledRows:
        """As the protocol says."""
        raise ModelError(f"{self._path}: tensor {part.name} has no scale for each output")

    def inverse_frequencies(self, rope: Rope, num_positions: int = 0) -> Float32Array:
        """As the protocol says. Llama 3's scaling comes as a tensor of divisors, Phi-3's as two."""
        frequencies, name = rope.inverse_frequencies(num_positions), _ROPE_FACTORS
        if rope.scaling is not None and rope.scaling.kind == "longrope":
            name = _ROPE_LONG if rope.scaling.is_long(num_positions) else _ROPE_SHORT
        info = self._header.tensors.get(name)
        if info is None:
            return frequencies
        check_shape(self._path, Part(name, frequencies.shape, ("rotary",)), info.shape)
        return frequencies / self._dequantise(name, info)

    def _name(self, part: Part) -> str:
        """Of the tensor that holds the part: of an expert's that of all experts, or its own in older files; or a fused one."""
        if (within := self._within(part)) is not None:
            return self.model.family.gguf_name(within.name)
        if part.expert is None:
            return self.model.family.gguf_name(part.name)
        before, _, after = part.name.partition(f".experts.{part.expert}.")
        name = self.model.family.gguf_name(f"{before}.experts.{after}")
        own = name.replace("_exps.", f".{part.expert}.")
        return own if own in self._header.tensors and name not in self._header.tensors else name

    def _within(self, part: Part) -> Within | None:
        """Where a part lies in a tensor that holds others, too, if it has none of its own."""
        names = self.model.family.gguf_names
        if part.expert is not None or not part.within or part.name.split(".", 3)[-1].rpartition(".")[0] in names:
            return None
        return part.within[0]

    def _find(self, part: Part) -> TensorInfo:
        """The tensor of a part, or the piece of it that is the part."""
        name = self._name(part)
        info = self._header.tensors.get(name)
        if info is None:
            raise missing_tensor(self._path, part)
        if (within := self._within(part)) is not None:
            check_shape(self._path, within, info.shape)
            (rows,) = within.index
            assert isinstance(rows, range)
            row = info.num_bytes // info.shape[0]
            return replace(info, shape=part.shape, offset=info.offset + rows.start * row, num_bytes=len(rows) * row)
        if part.expert is None or "_exps." not in name:
            check_shape(self._path, part, info.shape)
            return info
        parameter = self.model.spec.layers[int(part.name.split(".")[2])].experts
        assert parameter is not None
        check_shape(self._path, Part(name, (parameter.count, *part.shape), (None, *part.axes)), info.shape)
        size = info.num_bytes // parameter.count
        return replace(info, shape=part.shape, offset=info.offset + part.expert * size, num_bytes=size)

    def _row_order(self, part: Part) -> npt.NDArray[np.intp] | None:
        """Which row of the file each row of the part is, if not the same."""
        if not any(f".{module}." in part.name for module in self.model.family.interleaved):
            return None
        layer = self.model.spec.layers[int(part.name.split(".")[2])]
        return unpermuted_rows(part.shape[0], part.shape[0] // layer.head_dim)

    def _rows(self, info: TensorInfo) -> npt.NDArray[np.uint8]:
        raw = self._bytes[info.path][info.offset : info.offset + info.num_bytes]
        return raw.reshape(*info.shape[:-1], -1)

    def _dequantise(self, name: str, info: TensorInfo) -> Float32Array:
        kind = GGMLQuantizationType(info.ggml_type)
        try:
            values: Float32Array = dequantize(self._rows(info), kind).astype(np.float32, copy=False)
        except NotImplementedError as error:
            raise ModelError(
                f"{self._path}: tensor {name} is of type {kind.name}, which cannot be dequantised: take the model in another "
                f"type, {', '.join(('F16', 'BF16', *KINDS))}"
            ) from error
        if not is_finite(values):
            raise not_finite(self._path, name)
        return values


def unpermuted_rows(num_rows: int, num_heads: int) -> npt.NDArray[np.intp]:
    """Rows of a q or k projection in the order of the pairs (i, i + head_dim // 2): at each place the row of the file.

    Where GGUF files interleave them, they hold, within each head, the pair (i, i + head_dim // 2) as rows 2i and 2i + 1.
    """
    return np.arange(num_rows).reshape(num_heads, -1, 2).swapaxes(1, 2).reshape(-1)
