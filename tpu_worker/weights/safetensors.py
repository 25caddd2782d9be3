"""Weights from a Hugging Face directory: in floats, or in few bits, as its config.json says."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.codec import Float32Array
from protocol.errors import ModelError
from protocol.quantization_config import FIELD
from tpu_worker.models.registry import model_from_config
from tpu_worker.models.rope import Rope
from tpu_worker.models.spec import Part, Within
from tpu_worker.weights.blocks import BlockMatrix
from tpu_worker.weights.mxfp4 import MXFP4, NO_NUMBER, mxfp4_values, rows_of_mxfp4, scales_of
from tpu_worker.weights.quantised.schemes import TENSORS
from tpu_worker.weights.quantised.weights import QuantisedWeights
from tpu_worker.weights.scaled_rows import NarrowType, ScaledRows
from tpu_worker.weights.source import check_all_used, is_finite, missing_tensor, not_finite
from tpu_worker.weights.tensor_files import TensorFiles

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
        self._tensors = TensorFiles(self._directory, self.model.family.huggingface_name)
        others = self.model.family.left_out
        of_text = {name for name in self._tensors.names if not self._tensors.stored_name(name).startswith(others)}
        if len(of_text) < len(self._tensors.names):
            left_out = sorted({*self._tensors.names} - of_text)
            kinds = sorted({self._tensors.stored_name(name).removeprefix("model.").split(".")[0] for name in left_out})
            _LOG.info("%s: only text is served: %d tensors of %s are left out", directory, len(left_out), ", ".join(kinds))
        parts = [part for group in self.model.parameters() for one in group.values() for part in one.parts]
        config = self.model.quantization
        self._quantised = None if config is None or not config.rules else QuantisedWeights(self._tensors, config, parts)
        used = set()
        for part in parts:
            if self._quantised is None or not self._quantised.holds(part):
                tensor, within = self._locate(part)
                used |= {tensor, scales_of(tensor)} if within is not None and within.mxfp4 else {tensor}
        unused = {name for name in of_text if name not in used and not name.endswith(_DERIVED)}
        if self.model.spec.tied_embeddings and self._same(_HEAD, _EMBEDDING):
            unused.discard(_HEAD)
        if self._quantised is not None:
            unused = self._without_quantised(self._quantised, unused)
        elif few_bits := sorted(name for name in unused if name.rpartition(".")[2] in TENSORS):
            raise ModelError(
                f"{self._tensors.file_of(few_bits[0])}: tensor {few_bits[0]} is of a quantised weight, but "
                f"{self._directory / 'config.json'} says in no {FIELD} that there are any: both must be of one model"
            )
        check_all_used(self._directory, self.model, unused)

    def _without_quantised(self, quantised: QuantisedWeights, unused: set[str]) -> set[str]:
        """Of these tensors those that have nothing to do with quantised weights. Says what is left out."""
        unused = unused - quantised.used()
        scales, biases = quantised.left_out(unused)
        _LOG.info("%s: %s", self._directory, quantised.describe())
        if scales:
            _LOG.info("%s: %d scales of activations or of the KV cache are left out", self._directory, len(scales))
        if biases:
            _LOG.info("%s: %d biases that are nothing but zeros are left out", self._directory, len(biases))
        return unused - scales - biases

    def read(self, part: Part) -> npt.NDArray[Any]:
        """As the protocol says."""
        if self._quantised is not None and self._quantised.holds(part):
            return self._quantised.read(part)
        tensor, within = self._locate(part)
        if within is not None and within.mxfp4:
            return mxfp4_values(self._read_mxfp4(within))
        values = self._take(part, within or Within(tensor, part.shape, ()), _FLOATS)
        if not is_finite(values):
            raise not_finite(self._tensors.file_of(tensor), tensor)
        return values

    def _take(self, part: Part, within: Within, types: Sequence[str]) -> npt.NDArray[Any]:
        """What a part has of a tensor, which is of one of these types."""
        if not self._tensors.has(within.name):
            raise missing_tensor(self._directory, part)
        self._tensors.check(within.name, within.shape, types)
        first, *others = (*within.index, None)
        if isinstance(first, range) and first.step == 1 and not within.transposed and all(one is None for one in others):
            return self._tensors.take(within.name, slice(first.start, first.stop))
        if not isinstance(first, int):
            return within.take(self._tensors.take(within.name))
        # One expert's, so that the others are not read.
        return replace(within, index=(0, *within.index[1:])).take(self._tensors.take(within.name, slice(first, first + 1)))

    def _read_mxfp4(self, within: Within) -> npt.NDArray[np.uint8]:
        """Rows of blocks as GGUF files have them."""
        scales = replace(within, name=scales_of(within.name), shape=within.shape[:-1])
        blocks, exponents = (self._take(Part(one.name, one.shape, ()), one, ("U8",)) for one in (within, scales))
        if (exponents == NO_NUMBER).any():
            raise not_finite(self._tensors.file_of(scales.name), scales.name)
        return rows_of_mxfp4(blocks, exponents)

    def _locate(self, part: Part) -> tuple[str, Within | None]:
        """The tensor that holds a part, and where in there if it holds others, too; of one that is missing its own name."""
        if not self._tensors.has(part.name):
            for within in part.within:
                if self._tensors.has(within.name):
                    return within.name, within
        return part.name, None

    def stored_kind(self, part: Part) -> str | None:
        """As the protocol says."""
        if self._quantised is not None and self._quantised.holds(part):
            return self._quantised.kind(part)
        _, within = self._locate(part)
        return MXFP4 if within is not None and within.mxfp4 else None

    def read_blocks(self, part: Part) -> BlockMatrix:
        """As the protocol says."""
        if self._quantised is not None and self._quantised.holds(part):
            return self._quantised.read_blocks(part)
        _, within = self._locate(part)
        if within is None or not within.mxfp4:
            raise ModelError(f"{self._directory}: tensor {part.name} is not held in blocks")
        return BlockMatrix(MXFP4, self._read_mxfp4(within))

    def narrow_type(self, part: Part) -> NarrowType | None:
        """As the protocol says."""
        return self._quantised.narrow_type(part) if self._quantised is not None and self._quantised.holds(part) else None

    def read_narrow(self, part: Part) -> ScaledRows:
        """As the protocol says."""
        if self._quantised is None or not self._quantised.holds(part):
            raise ModelError(f"{self._directory}: tensor {part.name} has no scale for each output")
        return self._quantised.read_narrow(part)

    def inverse_frequencies(self, rope: Rope, num_positions: int = 0) -> Float32Array:
        """As the protocol says."""
        return rope.inverse_frequencies(num_positions)

    def _same(self, *names: str) -> bool:
        """Whether two tensors are there and hold the same."""
        if not all(map(self._tensors.has, names)):
            return False
        first, second = map(self._tensors.take, names)
        return bool(first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes())
