"""Weights from a Hugging Face directory: one safetensors file, or shards with their index."""

from pathlib import Path
from typing import Any

import msgspec
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from protocol.codec import Float32Array
from protocol.errors import ModelError
from tpu_worker.models.registry import spec_from_config_json
from tpu_worker.models.spec import Part
from tpu_worker.weights.blocks import BlockMatrix
from tpu_worker.weights.source import check_shape, missing_tensor

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = ("F32", "F16", "BF16")


class SafetensorsSource:
    """Implements `WeightSource`."""

    def __init__(self, directory: str | Path) -> None:
        """Opens every file at once, so that a shard that is missing or cut short is named before anything is loaded."""
        self._directory = Path(directory)
        self.spec = spec_from_config_json(self._directory / "config.json")
        self._files = {name: _open(self._directory / name) for name in self._file_names()}
        self._where = {tensor: name for name, file in self._files.items() for tensor in file.keys()}  # noqa: SIM118 not a dict

    def read(self, part: Part) -> npt.NDArray[Any]:
        """As the protocol says."""
        name = self._where.get(part.name)
        if name is None:
            raise missing_tensor(self._directory, part)
        path, file = self._directory / name, self._files[name]
        view = file.get_slice(part.name)
        check_shape(path, part, tuple(view.get_shape()))
        if view.get_dtype() not in _FLOATS:
            raise ModelError(f"{path}: tensor {part.name} is of type {view.get_dtype()}; supported: {', '.join(_FLOATS)}")
        return file.get_tensor(part.name)  # type: ignore[no-any-return]

    def stored_bits(self, part: Part) -> int | None:
        """As the protocol says: these files hold floats."""
        return None

    def read_blocks(self, part: Part) -> BlockMatrix:
        """As the protocol says: never asked for."""
        raise ModelError(f"{self._directory}: tensor {part.name} is not held in blocks")

    def inverse_frequencies(self) -> Float32Array:
        """As the protocol says."""
        return self.spec.inverse_frequencies()

    def _file_names(self) -> list[str]:
        index = self._directory / _INDEX
        if not index.exists():
            if not (self._directory / _SINGLE).exists():
                raise ModelError(f"{self._directory}: neither {_SINGLE} nor {_INDEX} is here")
            return [_SINGLE]
        try:
            weight_map = msgspec.json.decode(index.read_bytes(), type=dict[str, Any])["weight_map"]
            names = sorted(set(msgspec.convert(weight_map, dict[str, str]).values()))
        except OSError as error:
            raise ModelError(f"{index}: {error.strerror}") from error
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError) as error:
            raise ModelError(f"{index}: no weight_map to be read: {error!r}") from error
        for name in names:
            if Path(name).name != name:  # an index may not point outside of its directory
                raise ModelError(f"{index}: {name!r} is no plain file name")
        return names


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="np")
    except FileNotFoundError as error:
        raise ModelError(f"{path}: the index names this file, but it is not here") from error
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a whole safetensors file, perhaps cut short: {error}") from error
