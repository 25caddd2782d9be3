"""Weights from a Hugging Face directory: one safetensors file, or shards with their index."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from protocol.codec import Float32Array
from protocol.errors import ModelError
from protocol.safetensors_header import weight_files
from tpu_worker.models.registry import model_from_config
from tpu_worker.models.rope import Rope
from tpu_worker.models.spec import Part, Within
from tpu_worker.weights.blocks import BlockMatrix
from tpu_worker.weights.mxfp4 import mxfp4_values, rows_of_mxfp4, scales_of
from tpu_worker.weights.source import check_all_used, check_shape, missing_tensor

_LOG = logging.getLogger(__name__)
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
        stored = {tensor: name for name, file in self._files.items() for tensor in file.keys()}  # noqa: SIM118 not a dict
        left_out = [tensor for tensor in stored if tensor.startswith(self.model.family.left_out)]
        if left_out:
            kinds = sorted({tensor.removeprefix("model.").split(".")[0] for tensor in left_out})
            _LOG.info("%s: only text is served: %d tensors of %s are left out", directory, len(left_out), ", ".join(kinds))
        self._stored = {self.model.family.huggingface_name(tensor): tensor for tensor in stored.keys() - left_out}
        self._where = {name: stored[tensor] for name, tensor in self._stored.items()}
        parts = (part for group in self.model.parameters() for one in group.values() for part in one.parts)
        used = set()
        for part in parts:
            tensor, within = self._locate(part)
            used |= {tensor, scales_of(tensor)} if within is not None and within.mxfp4 else {tensor}
        unused = {name for name in self._where if name not in used and not name.endswith(_DERIVED)}
        if self.model.spec.tied_embeddings and self._same(_HEAD, _EMBEDDING):
            unused.discard(_HEAD)
        check_all_used(self._directory, self.model, unused)

    def read(self, part: Part) -> npt.NDArray[Any]:
        """As the protocol says."""
        tensor, within = self._locate(part)
        if within is not None and within.mxfp4:
            return mxfp4_values(self._read_mxfp4(within))
        return self._take(part, within or Within(tensor, part.shape, ()), _FLOATS)

    def _take(self, part: Part, within: Within, types: Sequence[str]) -> npt.NDArray[Any]:
        """What a part has of a tensor, which is of one of these types."""
        name = self._where.get(within.name)
        if name is None:
            raise missing_tensor(self._directory, part)
        path, file = self._directory / name, self._files[name]
        view = file.get_slice(self._stored[within.name])
        check_shape(path, within, tuple(view.get_shape()))
        if view.get_dtype() not in types:
            raise ModelError(f"{path}: tensor {within.name} is of type {view.get_dtype()}; supported: {', '.join(types)}")
        first, *others = (*within.index, None)
        if isinstance(first, range) and first.step == 1 and not within.transposed and all(one is None for one in others):
            return view[first.start : first.stop]  # type: ignore[no-any-return]
        if not isinstance(first, int):
            return within.take(file.get_tensor(self._stored[within.name]))
        # One expert's, so that the others are not read.
        return replace(within, index=(0, *within.index[1:])).take(view[first : first + 1])

    def _read_mxfp4(self, within: Within) -> npt.NDArray[np.uint8]:
        """Rows of blocks as GGUF files have them."""
        scales = replace(within, name=scales_of(within.name), shape=within.shape[:-1])
        both = [self._take(Part(one.name, one.shape, ()), one, ("U8",)) for one in (within, scales)]
        return rows_of_mxfp4(*both)

    def _locate(self, part: Part) -> tuple[str, Within | None]:
        """The tensor that holds a part, and where in there if it holds others, too; of one that is missing its own name."""
        if part.name not in self._where:
            for within in part.within:
                if within.name in self._where:
                    return within.name, within
        return part.name, None

    def stored_kind(self, part: Part) -> str | None:
        """As the protocol says: these files hold floats."""
        return None

    def read_blocks(self, part: Part) -> BlockMatrix:
        """As the protocol says: never asked for."""
        raise ModelError(f"{self._directory}: tensor {part.name} is not held in blocks")

    def inverse_frequencies(self, rope: Rope, num_positions: int = 0) -> Float32Array:
        """As the protocol says."""
        return rope.inverse_frequencies(num_positions)

    def _same(self, *names: str) -> bool:
        """Whether two tensors are there and hold the same."""
        if not all(name in self._where for name in names):
            return False
        first, second = (self._files[self._where[name]].get_tensor(self._stored[name]) for name in names)
        return bool(first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes())


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a whole safetensors file, perhaps cut short: {error}") from error
