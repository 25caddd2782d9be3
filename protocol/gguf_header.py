"""Reads the header of a GGUF file: its metadata and where its tensors lie.

The frontend wants the tokenizer and the worker the weights of the same file. The `gguf` package's reader takes 3 s for the 49,152
tokens of a small model, which would be most of a start; this one takes a tenth of a second. Format: ggml's `docs/gguf.md`.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from protocol.errors import ModelError

_MAGIC = b"GGUF"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LONGEST_ARRAY = 1 << 24  # entries; no vocabulary comes near, a damaged length does

Value: TypeAlias = "str | int | float | bool | list[str] | list[int] | list[float] | list[bool]"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: shape in row-major order (GGUF stores it reversed), ggml type number, byte offset in the file."""

    shape: tuple[int, ...]
    ggml_type: int
    offset: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """All metadata by key, all tensors by name."""

    metadata: dict[str, Value]
    tensors: dict[str, TensorInfo]


def read_gguf_header(path: str | Path) -> GgufHeader:
    """Raises ModelError, naming the file and the reason, when it is no GGUF file or is cut short within the header."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Parser(data).parse()
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    except (struct.error, UnicodeDecodeError, ValueError, KeyError, OverflowError) as error:
        raise ModelError(f"{path}: not a readable GGUF file, perhaps cut short: {error}") from error


class _Parser:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._position = 0

    def parse(self) -> GgufHeader:
        if self._data[:4] != _MAGIC:
            raise ValueError(f"it begins with {self._data[:4]!r}, not {_MAGIC!r}")
        self._position = 4
        version = self._scalar("I")
        if version not in (2, 3):
            raise ValueError(f"GGUF version {version}; versions 2 and 3 are supported")
        num_tensors, num_fields = int(self._scalar("Q")), int(self._scalar("Q"))
        metadata: dict[str, Value] = {}
        for _ in range(num_fields):
            key = self._string()
            metadata[key] = self._value(int(self._scalar("I")))
        infos = [self._tensor() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"general.alignment is {alignment}")
        base = -(-self._position // alignment) * alignment
        return GgufHeader(metadata, {name: TensorInfo(shape, kind, base + offset) for name, shape, kind, offset in infos})

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        rank = int(self._scalar("I"))
        if rank > 8:
            raise ValueError(f"tensor {name} has {rank} dimensions")
        shape = tuple(int(self._scalar("Q")) for _ in range(rank))[::-1]
        return name, shape, int(self._scalar("I")), int(self._scalar("Q"))

    def _scalar(self, code: str) -> float:
        (value,) = struct.unpack_from("<" + code, self._data, self._position)
        self._position += struct.calcsize("<" + code)
        return value  # type: ignore[no-any-return]

    def _string(self) -> str:
        length = int(self._scalar("Q"))
        end = self._position + length
        if end > len(self._data):
            raise ValueError(f"a string of {length} bytes reaches past the end of the file")
        text = self._data[self._position : end].decode()
        self._position = end
        return text

    def _value(self, kind: int) -> Value:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._scalar(_SCALARS[kind])
        item, length = int(self._scalar("I")), int(self._scalar("Q"))
        if length > _LONGEST_ARRAY:
            raise ValueError(f"an array of {length} entries")
        if item == _STRING:
            return [self._string() for _ in range(length)]
        dtype = np.dtype("<" + _SCALARS[item]) if _SCALARS[item] != "?" else np.dtype(bool)
        values = np.frombuffer(self._data, dtype, count=length, offset=self._position).tolist()
        self._position += length * dtype.itemsize
        return values  # type: ignore[no-any-return]
