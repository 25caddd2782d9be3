"""The tensors of a Hugging Face directory, in one safetensors file or in shards with their index."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from protocol.errors import ModelError
from protocol.safetensors_header import StoredTensor, data_start, read_safetensors_header, weight_files

_HEAD = "lm_head.weight"
# Types that NumPy has no name for, which the library does not read: by bytes.
_OF_A_BYTE = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2, "F8_E8M0": ml_dtypes.float8_e8m0fnu}


class TensorFiles:
    """Implements `quantised.tensors.Tensors`. Reading is safe from several threads."""

    def __init__(self, directory: Path, rename: Callable[[str], str]) -> None:
        """Opens every file at once, so that a shard that is missing or cut short is named before anything is loaded.

        rename: from the name that a file has for a tensor to the one that it is asked for under.
        """
        self._directory = directory
        self._files = {path.name: _open(path) for path in weight_files(directory)}
        stored: dict[str, str] = {tensor: name for name, file in self._files.items() for tensor in file.keys()}  # noqa: SIM118 not a dict
        self._stored = {rename(tensor): tensor for tensor in stored}
        if not any(name.startswith("model.") for name in self._stored):  # saved without its head, as embedding models are
            self._stored = {name if name == _HEAD else f"model.{name}": tensor for name, tensor in self._stored.items()}
        self._headers: dict[str, tuple[dict[str, StoredTensor], int]] = {}  # of files with types that the library does not read
        self._where = {name: stored[tensor] for name, tensor in self._stored.items()}

    @property
    def path(self) -> Path:
        """The directory."""
        return self._directory

    @property
    def names(self) -> Collection[str]:
        """Of all tensors."""
        return self._stored.keys()

    def has(self, name: str) -> bool:
        """Whether a file holds it."""
        return name in self._stored

    def stored_name(self, name: str) -> str:
        """What the file calls a tensor that is there."""
        return self._stored[name]

    def file_of(self, name: str) -> Path:
        """Of a tensor that is there."""
        return self._directory / self._where[name]

    def type_of(self, name: str) -> str:
        """As safetensors writes it, of a tensor that is there."""
        return str(self._slice(name).get_dtype())

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Of a tensor that is there."""
        return tuple(self._slice(name).get_shape())

    def read(self, name: str, shape: tuple[int, ...] | None, types: Sequence[str]) -> npt.NDArray[Any]:
        """All of a tensor. Raises ModelError when it is missing, or of another shape (None: any) or type than these."""
        if not self.has(name):
            raise ModelError(f"{self._directory}: tensor {name}{f' of shape {list(shape)}' if shape else ''} is missing")
        self.check(name, shape, types)
        return self.take(name)

    def check(self, name: str, shape: tuple[int, ...] | None, types: Sequence[str]) -> None:
        """Raises ModelError when a tensor that is there has another shape (None: any) or type than these."""
        if shape is not None and (found := self.shape_of(name)) != shape:
            raise ModelError(
                f"{self.file_of(name)}: tensor {name} has shape {list(found)}, but the model's sizes ask for {list(shape)}"
            )
        if (kind := self.type_of(name)) not in types:
            raise ModelError(f"{self.file_of(name)}: tensor {name} is of type {kind}; supported: {', '.join(types)}")

    def take(self, name: str, first: slice | None = None) -> npt.NDArray[Any]:
        """A tensor that is there, or part of it along its first dimension."""
        if self.type_of(name) in _OF_A_BYTE:
            whole = self._bytes(name)
            return whole if first is None else whole[first]
        if first is None:
            return self._files[self._where[name]].get_tensor(self._stored[name])  # type: ignore[no-any-return]
        return self._slice(name)[first]  # type: ignore[no-any-return]

    def _slice(self, name: str) -> Any:
        return self._files[self._where[name]].get_slice(self._stored[name])

    def _bytes(self, name: str) -> npt.NDArray[Any]:
        path = self.file_of(name)
        if path.name not in self._headers:
            self._headers[path.name] = read_safetensors_header(path), data_start(path)
        header, start = self._headers[path.name]
        tensor = header[self._stored[name]]
        begin, end = tensor.data_offsets
        raw = np.memmap(path, np.uint8, "r", start + begin, (end - begin,)) if end > begin else np.zeros(0, np.uint8)
        values: npt.NDArray[Any] = np.asarray(raw).view(_OF_A_BYTE[tensor.dtype]).reshape(tensor.shape)
        return values


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a whole safetensors file, perhaps cut short: {error}") from error
