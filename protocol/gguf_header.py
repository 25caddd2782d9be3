"""Reads the header of a GGUF file: its metadata and where its tensors lie.

Launcher, frontend and worker want it of the same file. The `gguf` package's reader takes 3 s for the 49,152 tokens of a small
model, which would be most of a start; this one takes a twentieth of a second. Format: ggml's `docs/gguf.md`, and where that leaves
something open, what llama.cpp asks of a file (ggml's gguf.cpp): no key and no tensor twice, one to four dimensions.
"""

import math
import mmap
import re
import reprlib
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeAlias

import numpy as np

from protocol.errors import ModelError
from protocol.foreign_files import ENOUGH, kind_of
from protocol.ggml_types import GGML_BLOCKS
from protocol.gguf_shards import check_shards, shard_of, shard_paths

_MAGIC = b"GGUF"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LENGTH_BYTES = 8  # of the length before each text
_LONGEST_HEADER = 1 << 25  # bytes: twice the largest vocabulary with its merges. As lists of Python it takes up to eight times more
_MOST_ENTRIES = 1 << 16  # of metadata and of tensors; the largest models have some thousand tensors
_LONGEST_ARRAY = 1 << 22  # entries; sixteen times the largest vocabulary
_LONGEST_KEY = 1 << 16  # bytes, as the format says
_LONGEST_NAME = 1 << 8  # bytes; ggml takes 63
_LARGEST_ALIGNMENT = 1 << 20  # bytes
_LARGEST_TENSOR = 1 << 62  # values, so that no count of bytes wraps
_LOOK_AT = 1 << 20  # bytes behind the last tensor in which anything but zeros is looked for
_PART = re.compile(r"-\d{3,}-of-\d{3,}\.gguf$|\.gguf[\W_]*(split|part)", re.IGNORECASE)

Value: TypeAlias = "str | int | float | bool | list[str] | list[int] | list[float] | list[bool]"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: shape in row-major order (GGUF stores it reversed), ggml type number, byte offset in its file, size in bytes."""

    shape: tuple[int, ...]
    ggml_type: int
    offset: int
    num_bytes: int
    path: Path  # of the file, which may be one of several


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """All metadata by key, all tensors by name, of all files of a model."""

    metadata: dict[str, Value]
    tensors: dict[str, TensorInfo]


def read_gguf_header(path: str | Path) -> GgufHeader:
    """The header of a whole model: every tensor lies within its file. path: of its only file, or of any of its parts.

    Raises ModelError that names the file, the field or tensor, and the way out, for any file that is not one whole GGUF file, and
    for parts that are missing or of different models.
    """
    one = _read_one(path)
    shard = shard_of(path, one.metadata)
    if shard is None:
        return one
    parts = {other: one if other == Path(path) else _read_one(other) for other in shard_paths(path, shard)}
    check_shards({other: (shard_of(other, part.metadata), part.metadata, part.tensors) for other, part in parts.items()})
    tensors = {name: info for part in parts.values() for name, info in part.tensors.items()}
    return GgufHeader(next(iter(parts.values())).metadata, tensors)


def _read_one(path: str | Path) -> GgufHeader:
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{path}: no regular file")
        with open(path, "rb") as file:
            head = file.read(ENOUGH)
            if head[:4] != _MAGIC:
                raise ModelError(f"{path}: not a GGUF file but {kind_of(head)}{_hint(path)}")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Parser(path, data).parse()
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error


def _hint(path: str | Path) -> str:
    return "; by its name it is one of the pieces of a cut file: join the pieces first" if _PART.search(Path(path).name) else ""


class _Parser:
    def __init__(self, path: str | Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._size = len(data)
        self._position = len(_MAGIC)
        self._reading = "the counts at its beginning"  # for errors

    def parse(self) -> GgufHeader:
        version = self._integer("I")
        if version and version & 0xFFFF == 0:
            self._fail("a big-endian GGUF file, and this machine is little-endian: convert the model again without --bigendian")
        if version not in (2, 3):
            self._fail(f"GGUF version {version}, versions 2 and 3 are read: convert the model again")
        num_tensors, num_fields = self._integer("Q"), self._integer("Q")
        if max(num_tensors, num_fields) > _MOST_ENTRIES:
            self._fail(f"damaged: it would hold {num_tensors} tensors and {num_fields} entries of metadata")
        metadata: dict[str, Value] = {}
        for index in range(num_fields):
            self._reading = f"entry {index + 1} of {num_fields} of its metadata"
            key = self._string(_LONGEST_KEY)
            self._reading = key[:_LONGEST_NAME]
            if key in metadata:
                self._fail(f"damaged: its metadata holds {self._reading} twice")
            metadata[key] = self._value(self._integer("I"))
        infos: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for index in range(num_tensors):
            self._reading = f"entry {index + 1} of {num_tensors} of its list of tensors"
            name = self._string(_LONGEST_NAME)
            if name in infos:
                self._fail(f"damaged: it lists tensor {name} twice")
            infos[name] = self._tensor(name)
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= _LARGEST_ALIGNMENT or alignment & (alignment - 1):
            self._fail(f"general.alignment is {reprlib.repr(alignment)}, a power of two is wanted")
        base = -(-self._position // alignment) * alignment
        tensors = {
            name: TensorInfo(shape, kind, base + offset, self._num_bytes(name, shape, kind), Path(self._path))
            for name, (shape, kind, offset) in infos.items()
        }
        self._check_places(tensors, alignment)
        return GgufHeader(metadata, tensors)

    def _tensor(self, name: str) -> tuple[tuple[int, ...], int, int]:
        rank = self._integer("I")
        if not 1 <= rank <= 4:
            self._fail(f"damaged: tensor {name} has {rank} dimensions, 1 to 4 are possible")
        shape = tuple(self._integer("Q") for _ in range(rank))[::-1]
        if not 1 <= math.prod(shape) <= _LARGEST_TENSOR:
            self._fail(f"damaged: tensor {name} has the shape {list(shape)}")
        return shape, self._integer("I"), self._integer("Q")

    def _num_bytes(self, name: str, shape: tuple[int, ...], kind: int) -> int:
        if kind not in GGML_BLOCKS:
            self._fail(f"tensor {name} is of ggml type {kind}, which is not known: convert the model to a type that llama.cpp has")
        values_per_block, bytes_per_block = GGML_BLOCKS[kind]
        if shape[-1] % values_per_block:
            self._fail(f"damaged: tensor {name} of shape {list(shape)} is not made of blocks of {values_per_block}")
        return math.prod(shape) // values_per_block * bytes_per_block

    def _check_places(self, tensors: dict[str, TensorInfo], alignment: int) -> None:
        """Every tensor lies in the file, apart from the others, and nothing follows the last."""
        end, before = self._position, ""
        for name, info in sorted(tensors.items(), key=lambda item: item[1].offset):
            if info.offset % alignment:
                self._fail(f"damaged: tensor {name} begins at byte {info.offset}, which is no multiple of {alignment}")
            if info.offset < end:
                self._fail(f"damaged: tensor {name} begins at byte {info.offset}, within tensor {before}, which ends at byte {end}")
            end, before = info.offset + info.num_bytes, name
            if end > self._size:
                self._fail(
                    f"cut short: tensor {name} ends at byte {end}, the file at {self._size}: download it again, "
                    "or join all its parts in their order"
                )
        rest = -(-end // alignment) * alignment
        if tensors and any(self._data[rest : rest + _LOOK_AT]):
            self._fail(
                f"not what its header describes: that ends at byte {rest}, the file at {self._size}. "
                "Were parts joined in a wrong order, or twice?"
            )

    def _integer(self, code: str) -> int:
        return int(self._scalar(code))

    def _scalar(self, code: str) -> float:
        size = struct.calcsize("<" + code)
        self._need(size)
        (value,) = struct.unpack_from("<" + code, self._data, self._position)
        self._position += size
        return value  # type: ignore[no-any-return]

    def _string(self, longest: int = _LONGEST_HEADER) -> str:
        length = self._integer("Q")
        if length > longest:
            self._fail(f"damaged: {self._reading} has a text of {length} bytes")
        self._need(length)
        start, self._position = self._position, self._position + length
        try:
            return self._data[start : self._position].decode()
        except UnicodeDecodeError as error:
            self._fail(f"{self._reading} is not UTF-8: {error.reason} at byte {error.start} of it", error)

    def _value(self, kind: int) -> Value:
        if kind == _STRING:
            return self._string()
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind != _ARRAY:
            self._fail(f"damaged: {self._reading} is of metadata type {kind}, which is not known")
        item, length = self._integer("I"), self._integer("Q")
        if length > _LONGEST_ARRAY:
            self._fail(f"damaged: {self._reading} is an array of {length} entries")
        if item == _STRING:
            return self._strings(length)
        if item not in _SCALARS:
            self._fail(f"{self._reading} is an array of metadata type {item}, which is not read")
        dtype = np.dtype("<" + _SCALARS[item])
        self._need(length * dtype.itemsize)
        values: list[int] | list[float] | list[bool] = np.frombuffer(
            self._data, dtype, count=length, offset=self._position
        ).tolist()
        self._position += length * dtype.itemsize
        return values

    def _strings(self, count: int) -> list[str]:
        """`_string`, count times: in a loop of its own, since there are hundreds of thousands."""
        self._need(count * _LENGTH_BYTES)
        data, position, last, number = self._data, self._position, min(self._size, _LONGEST_HEADER), int.from_bytes
        texts: list[str] = []
        try:
            for _ in range(count):
                start = position + _LENGTH_BYTES
                position = start + number(data[position:start], "little")
                if position > last:
                    self._need(position - self._position)
                texts.append(data[start:position].decode())
        except UnicodeDecodeError as error:
            self._fail(f"entry {len(texts)} of {self._reading} is not UTF-8: {error.reason}", error)
        self._position = position
        return texts

    def _need(self, size: int) -> None:
        if self._position + size > self._size:
            self._fail(
                f"cut short or damaged: {self._reading} reaches past the end of the file at byte {self._size}: download it again, "
                "or join all its parts in their order"
            )
        if self._position + size > _LONGEST_HEADER:
            self._fail(f"damaged: {self._reading} reaches past byte {_LONGEST_HEADER}, and no header is so long")

    def _fail(self, text: str, cause: Exception | None = None) -> NoReturn:
        way_out = "; download it again, or convert the model again" if text.startswith("damaged") else ""
        raise ModelError(f"{self._path}: {text}{way_out}{_hint(self._path)}") from cause
