"""Random weights for a model of which there is a config.json alone: for tests of speed and memory, its answers mean nothing.

A weight follows from its name and the seed, whatever the chips and threads. It is cut from a pool of random numbers, over and over,
from a place that the name says. The pool's size is a prime, so that rows differ from their neighbours. Memory is only copied, which
is as fast as to read a file.
"""

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from protocol.codec import Float32Array
from tpu_worker.models.registry import model_from_config
from tpu_worker.models.rope import Rope
from tpu_worker.models.spec import Part
from tpu_worker.weights.blocks import BlockMatrix
from tpu_worker.weights.mxfp4 import MXFP4
from tpu_worker.weights.quantised.matrix import kept_kind, narrow_type_of
from tpu_worker.weights.quantised.weights import places_of
from tpu_worker.weights.scaled_blocks import SPANS, label, rows_of
from tpu_worker.weights.scaled_rows import NarrowType, ScaledRows, quantise_rows

_POOL = 1_000_003  # numbers
_BLOCKS = 32_771  # in blocks of one kind
_BIAS = 0.02  # how far apart numbers are that are added


class DummySource:
    """Implements `WeightSource`."""

    def __init__(self, directory: str | Path, seed: int = 0) -> None:
        """Raises ModelError when config.json is not there, or of a kind that is not supported."""
        self.model = model_from_config(Path(directory) / "config.json")
        self._seed = seed
        self._offsets = {
            part: one.offset for group in self.model.parameters() for one in group.values() for part in one.parts if one.offset
        }
        self._lock = threading.Lock()
        self._pools: dict[tuple[str, float], npt.NDArray[Any]] = {}
        self._normal = np.random.default_rng(seed).standard_normal(_POOL, np.float32)

    def read(self, part: Part) -> npt.NDArray[Any]:
        """As the protocol says. Norms multiply by 1; what a product makes is as large as what went into it."""
        if len(part.shape) == 1:
            if part.name.endswith(".weight"):
                return np.full(part.shape, 1 - self._offsets.get(part, 0.0), np.float32)
            return self._cut(part, self._pool("f32", _BIAS, lambda: self._normal * np.float32(_BIAS)), part.shape)
        spread = part.shape[-1] ** -0.5
        return self._cut(part, self._pool("bf16", spread, lambda: (self._normal * spread).astype(ml_dtypes.bfloat16)), part.shape)

    def stored_kind(self, part: Part) -> str | None:
        """As the protocol says: that of a checkpoint which is quantised as the config says."""
        config = self.model.quantization
        if config is None:
            return None
        if config.method == "mxfp4":
            return MXFP4 if any(within.mxfp4 for within in part.within) else None
        for name, shape, _ in places_of(part):
            if (form := config.format_of(name)) is not None:
                return kept_kind(form, shape[1])
        return None

    def read_blocks(self, part: Part) -> BlockMatrix:
        """As the protocol says."""
        kind, (out, width) = self.stored_kind(part), part.shape
        assert kind is not None
        pool = self._pool(kind, width**-0.5, lambda: _random_blocks(kind, width**-0.5, self._seed))
        blocks = self._cut(part, pool, (out, width // SPANS.get(kind, 32), pool.shape[1]))
        return BlockMatrix(kind, blocks.reshape(out, -1))

    def narrow_type(self, part: Part) -> NarrowType | None:
        """As the protocol says: as `stored_kind` does."""
        config = self.model.quantization
        if config is None:
            return None
        forms = (config.format_of(name) for name, _, _ in places_of(part))
        return next((narrow_type_of(form) for form in forms if form is not None), None)

    def read_narrow(self, part: Part) -> ScaledRows:
        """As the protocol says."""
        kind, spread = self.narrow_type(part), part.shape[1] ** -0.5
        assert kind is not None
        rows = quantise_rows(self._normal[None], kind)
        numbers = self._cut(part, self._pool(f"numbers {kind}", 1.0, lambda: rows.numbers[0]), part.shape)
        return ScaledRows(numbers, np.full(part.shape[0], rows.scales[0] * spread, np.float32))

    def inverse_frequencies(self, rope: Rope, num_positions: int = 0) -> Float32Array:
        """As the protocol says."""
        return rope.inverse_frequencies(num_positions)

    def _pool(self, kind: str, spread: float, make: Callable[[], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        with self._lock:
            if (kind, spread) not in self._pools:
                self._pools[kind, spread] = make()
            return self._pools[kind, spread]

    def _cut(self, part: Part, pool: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """As much of the pool as the shape takes."""
        digest = hashlib.blake2b(f"{self._seed} {part.name}".encode(), digest_size=8).digest()
        start = int.from_bytes(digest) % len(pool)
        found = np.empty(shape, pool.dtype)
        flat = found.reshape(-1, *pool.shape[1:])
        done = 0
        while done < len(flat):
            count = min(len(pool) - start, len(flat) - done)
            flat[done : done + count] = pool[start : start + count]
            done, start = done + count, 0
        return found


def _random_blocks(kind: str, spread: float, seed: int) -> npt.NDArray[np.uint8]:
    """[blocks, bytes] of numbers that are so far apart."""
    rng = np.random.default_rng(seed)
    if kind == MXFP4:  # of which any 4 bits stand for numbers that are 2.6 apart
        raw = rng.integers(0, 256, (_BLOCKS, 17), np.uint8)
        raw[:, 0] = 127 + round(np.log2(spread / 2.6))
        return raw
    numbers = rng.standard_normal((_BLOCKS, SPANS[kind]), np.float32)
    steps = {"INT4": 3.0, "INT8": 32.0, "FP8": 16.0}[label(kind)]  # to what is that far away
    scales, zeros = np.full((_BLOCKS, 1), spread / steps, np.float32), np.zeros((_BLOCKS, 1), np.int8)
    if label(kind) == "FP8":
        return rows_of(kind, (numbers * steps).astype(ml_dtypes.float8_e4m3fn), scales, None)
    middle, low, high = (8, 0, 15) if label(kind) == "INT4" else (0, -127, 127)
    found = np.rint(numbers * steps + middle).clip(low, high).astype(np.int8)
    return rows_of(kind, found.view(np.uint8) if label(kind) == "INT4" else found, scales, zeros + np.int8(middle))
