"""The weight files of a Hugging Face directory, and what the header of each says of its tensors.

Format: the README of huggingface/safetensors. The library reads the same, but takes NumPy along and opens whole files.
"""

import os
import stat
from pathlib import Path
from typing import Any

import msgspec

from protocol.errors import ModelError
from protocol.foreign_files import ENOUGH, kind_of, recognise

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"

_LENGTH_BYTES = 8  # of the length before the header
_LONGEST_HEADER = 1 << 25  # bytes; thousands of tensors take one of them
_AGAIN = "download it again"


class StoredTensor(msgspec.Struct, frozen=True):
    """One tensor: type, shape, and where its bytes begin and end behind the header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def weight_files(directory: Path) -> list[Path]:
    """The one file, or the shards that the index names. Raises ModelError when there is neither, or one is missing."""
    weight_map = _read_index(directory)
    if weight_map is None:
        return [directory / SINGLE_FILE]
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name:  # an index may not point outside of its directory
            raise ModelError(f"{directory / INDEX_FILE}: {name!r} is no plain file name")
        if not os.path.exists(directory / name):  # also where no file can have such a name
            raise ModelError(f"{directory / name}: {INDEX_FILE} names this file, but it is not here: download it too")
    return [directory / name for name in names]


def read_tensors(directory: Path) -> dict[str, StoredTensor]:
    """The tensors of all weight files, by name. Raises ModelError on files that are not whole or not of one model."""
    tensors: dict[str, StoredTensor] = {}
    where: dict[str, str] = {}
    for file in weight_files(directory):
        for name, tensor in read_safetensors_header(file).items():
            if name in where:
                raise ModelError(f"{file}: tensor {name} is in {where[name]} too: these are not the files of one model")
            tensors[name], where[name] = tensor, file.name
    for name, shard in (_read_index(directory) or {}).items():
        if where.get(name) != shard:
            raise ModelError(f"{directory / shard}: {INDEX_FILE} says that tensor {name} is in this file, but it is not: {_AGAIN}")
    return tensors


def read_safetensors_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one whole file by name. Raises ModelError that names the file and what is wrong with it."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{path}: no regular file")
        with open(path, "rb") as file:
            head = file.read(ENOUGH)
            length = int.from_bytes(head[:_LENGTH_BYTES], "little")
            if head[_LENGTH_BYTES : _LENGTH_BYTES + 1] != b"{" or length > _LONGEST_HEADER:
                raise ModelError(f"{path}: not a safetensors file but {kind_of(head)}")
            file.seek(_LENGTH_BYTES)
            text = file.read(length)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    if len(text) < length:
        raise ModelError(f"{path}: cut short within its header: {_AGAIN}")
    try:
        entries = msgspec.json.decode(text, type=dict[str, Any])
        entries.pop("__metadata__", None)
        tensors = msgspec.convert(entries, dict[str, StoredTensor])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{path}: its header is damaged: {error}: {_AGAIN}") from error
    end = _LENGTH_BYTES + length + max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    if end > status.st_size:
        raise ModelError(f"{path}: cut short: its tensors end at byte {end}, the file at {status.st_size}: {_AGAIN}")
    if end < status.st_size:
        raise ModelError(f"{path}: not what its header describes: that ends at byte {end}, the file at {status.st_size}: {_AGAIN}")
    return tensors


def data_start(path: Path) -> int:
    """Where the data of a whole file begin, from which `StoredTensor.data_offsets` count."""
    with open(path, "rb") as file:
        return _LENGTH_BYTES + int.from_bytes(file.read(_LENGTH_BYTES), "little")


def _read_index(directory: Path) -> dict[str, str] | None:
    """Shard by tensor; None: there is one file only."""
    path = directory / INDEX_FILE
    try:
        if not path.exists():
            if not (directory / SINGLE_FILE).exists():
                raise ModelError(f"{directory}: neither {SINGLE_FILE} nor {INDEX_FILE} is here, and other weights are not read")
            return None
        data = path.read_bytes()
        weight_map = msgspec.convert(msgspec.json.decode(data, type=dict[str, Any])["weight_map"], dict[str, str])
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError) as error:
        kind = recognise(data[:ENOUGH])
        raise ModelError(f"{path}: no weight_map to be read: {f'it is {kind}' if kind else repr(error)}") from error
    if not weight_map:
        raise ModelError(f"{path}: its weight_map names no file: {_AGAIN}")
    return weight_map
