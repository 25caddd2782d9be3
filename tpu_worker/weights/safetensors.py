"""Weights from a Hugging Face directory: one safetensors file, or shards with their index."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from protocol.codec import Float32Array
from protocol.errors import ModelError
from protocol.safetensors_header import weight_files
from tpu_worker.models.registry import model_from_config
from tpu_worker.models.rope import Rope
from tpu_worker.models.spec import Part, Within
from tpu_worker.weights.blocks import BlockMatrix
from tpu_worker.weights.source import check_all_used, check_shape, missing_tensor

_FLOATS = ("F32", "F16", "BF16")
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_DERIVED = (".rotary_emb.inv_freq",)  # older files store what follows from the configuration


class SafetensorsSource:
    """Implements `WeightSource`."""

    def __init__(self, directory: str | Path) -> None:
        """Opens every file at once, so that a shard that is missing or cut short is named before anything is loaded."""
        self._directory = Path(directory)
        self.model = model_from_config(self._directory / "config.json")
        self._files = {path.name: _open(path) for path in weight_files(self._directory)}
        self._where = {tensor: name for name, file in self._files.items() for tensor in file.keys()}  # noqa: SIM118 not a dict
        parts = (part for group in self.model.parameters() for one in group.values() for part in one.parts)
        used = {self._locate(part)[0] for part in parts}
        unused = {name for name in self._where if name not in used and not name.endswith(_DERIVED)}
        if self.model.spec.tied_embeddings and self._same(_HEAD, _EMBEDDING):
            unused.discard(_HEAD)
        check_all_used(self._directory, self.model, unused)

    def read(self, part: Part) -> npt.NDArray[Any]:
        """As the protocol says."""
        tensor, within = self._locate(part)
        name = self._where.get(tensor)
        if name is None:
            raise missing_tensor(self._directory, part)
        path, file = self._directory / name, self._files[name]
        view = file.get_slice(tensor)
        check_shape(path, part if within is None else within, tuple(view.get_shape()))
        if view.get_dtype() not in _FLOATS:
            raise ModelError(f"{path}: tensor {tensor} is of type {view.get_dtype()}; supported: {', '.join(_FLOATS)}")
        if within is None:
            return file.get_tensor(tensor)  # type: ignore[no-any-return]
        if not within.index or not isinstance(first := within.index[0], int):
            return within.take(file.get_tensor(tensor))
        # One expert's, so that the others are not read.
        return replace(within, index=(0, *within.index[1:])).take(view[first : first + 1])

    def _locate(self, part: Part) -> tuple[str, Within | None]:
        """The tensor that holds a part, and where in there if it holds others, too; of one that is missing its own name."""
        if part.name not in self._where:
            for within in part.within:
                if within.name in self._where:
                    return within.name, within
        return part.name, None

    def stored_bits(self, part: Part) -> int | None:
        """As the protocol says: these files hold floats."""
        return None

    def read_blocks(self, part: Part) -> BlockMatrix:
        """As the protocol says: never asked for."""
        raise ModelError(f"{self._directory}: tensor {part.name} is not held in blocks")

    def inverse_frequencies(self, rope: Rope) -> Float32Array:
        """As the protocol says."""
        return rope.inverse_frequencies()

    def _same(self, *names: str) -> bool:
        """Whether two tensors are there and hold the same."""
        if not all(name in self._where for name in names):
            return False
        first, second = (self._files[self._where[name]].get_tensor(name) for name in names)
        return bool(first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes())


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a whole safetensors file, perhaps cut short: {error}") from error
