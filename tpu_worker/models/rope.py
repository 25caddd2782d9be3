"""Rotary position embedding (Su et al. 2021): its frequencies, as a model's files describe them, and its table."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from protocol.codec import Float32Array
from protocol.errors import ModelError


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the context that the model was first trained on.

    "linear" divides every frequency by `factor`. "llama3" (Meta's Llama 3.1 reference code) divides the low ones, keeps the high
    ones, and blends in between. "yarn" (Peng et al. 2023) does so by how often a pair turns within the original context, and makes
    queries and keys larger.
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192  # tokens
    beta_fast: float = 32.0  # turns within the original context: pairs of more are left …
    beta_slow: float = 1.0  # … of fewer are divided …
    truncate: bool = True  # … with the bounds rounded to whole pairs
    amplitude: float = 1.0  # of queries and keys


@dataclass(frozen=True, slots=True)
class Rope:
    """The rotation of a layer's queries and keys."""

    size: int  # of a head: features that are rotated, in the pairs (i, i + size / 2)
    theta: float
    scaling: RopeScaling | None = None

    def inverse_frequencies(self) -> Float32Array:
        """Rotary frequencies in radians per position, [size // 2] float32."""
        exponents = np.arange(0, self.size, 2, dtype=np.float32) / np.float32(self.size)
        frequencies = (1.0 / np.float32(self.theta) ** exponents).astype(np.float32)
        scaling = self.scaling
        if scaling is None:
            return frequencies
        if scaling.kind == "linear":
            return frequencies / np.float32(scaling.factor)
        if scaling.kind == "yarn":
            stretched = self._stretched(scaling)
            return (frequencies * (1 - stretched + stretched / np.float32(scaling.factor))).astype(np.float32)
        wavelengths = 2 * np.pi / frequencies
        share = (scaling.original_context / wavelengths - scaling.low_freq_factor) / (
            scaling.high_freq_factor - scaling.low_freq_factor
        )
        kept = np.clip(share, 0.0, 1.0)
        return (frequencies * (kept + (1 - kept) / scaling.factor)).astype(np.float32)

    @property
    def amplitude(self) -> float:
        """What sines and cosines are multiplied with."""
        return 1.0 if self.scaling is None else self.scaling.amplitude

    def _stretched(self, scaling: RopeScaling) -> Float32Array:
        """By how much each pair is stretched, [size // 2] from 0 to 1: a ramp between two numbers of turns."""

        def pair(turns: float) -> float:
            return self.size * math.log(scaling.original_context / (turns * 2 * math.pi)) / (2 * math.log(self.theta))

        low, high = pair(scaling.beta_fast), pair(scaling.beta_slow)
        if scaling.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.size - 1)
        ramp = (np.arange(self.size // 2, dtype=np.float32) - low) / (high - low if high != low else 0.001)
        stretched: Float32Array = np.clip(ramp, 0.0, 1.0).astype(np.float32)
        return stretched


def yarn_amplitude(factor: float) -> float:
    """What the paper recommends for a context that many times as long."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


class _Fields(msgspec.Struct):
    """What a config.json says of rotation, merged from wherever it says it. `None`: not said."""

    rope_type: str | None = None
    type: str | None = None  # the older name of rope_type
    rope_theta: float | None = None
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None
    partial_rotary_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    truncate: bool | None = None
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None


_DEFAULT_THETA = 10000.0  # of transformers, where a config.json names none
_NEEDED = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}


def rope_from_config(path: object, config: Mapping[str, Any], size: int, layer_type: str | None = None) -> Rope:
    """The rotation that a config.json asks for in heads of this size, in layers of this type where it distinguishes them.

    `rope_parameters` (newer files), `rope_scaling` (older ones) and the fields beside them are read as one; ModelError, naming the
    file and the field, where they contradict each other, and for whatever is missing, out of range or not supported.
    """
    said: dict[str, Any] = {}
    where: dict[str, str] = {}
    for name, fields in (
        ("rope_parameters", config.get("rope_parameters")),
        ("rope_scaling", config.get("rope_scaling")),
        ("config", {key: config.get(key) for key in ("rope_theta", "original_max_position_embeddings", "partial_rotary_factor")}),
    ):
        if fields is None:
            continue
        if not isinstance(fields, Mapping):
            raise ModelError(f"{path}: {name} is {fields!r}, not an object")
        for key, value in _of_layer_type(path, name, fields, layer_type).items():
            if value is None:
                continue
            if key in said and said[key] != value:
                raise ModelError(f"{path}: {where[key]} says {key} = {said[key]!r}, but {name} says {value!r}: keep one of them")
            said[key], where[key] = value, name
    try:
        return _checked(path, size, msgspec.convert(said, _Fields))
    except msgspec.ValidationError as error:
        raise ModelError(f"{path}: rotary embedding: {error}") from error


def rope_scaling_from_gguf(path: object, kind: object, factor: float | None, original: int | None = None) -> RopeScaling | None:
    """The scaling of a GGUF file; a factor without a kind is linear, as llama.cpp has it. Raises ModelError.

    original: the context, in tokens, that the model was first trained on, for "yarn".
    """
    kind = kind if kind is not None else "linear" if factor is not None else "none"
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise ModelError(f"{path}: rope scaling {kind!r} is not supported, only 'linear' and 'yarn'")
    if factor is None:
        raise ModelError(f"{path}: rope.scaling.factor is missing, though rope.scaling.type is {kind!r}")
    if kind == "yarn":
        if original is None:
            raise ModelError(f"{path}: rope.scaling.original_context_length is missing, though rope.scaling.type is 'yarn'")
        factor, original = _positive(path, "rope.scaling.factor", factor), int(_positive(path, "original_context_length", original))
        return RopeScaling("yarn", factor, original_context=original, amplitude=yarn_amplitude(factor))
    return RopeScaling("linear", _positive(path, "rope.scaling.factor", factor))


def rotary_table(num_positions: int, frequencies: Float32Array) -> Float32Array:
    """[num_positions, 2 F]: for each position the cosines, then the sines, of its angles with frequencies [F]."""
    angles = np.arange(num_positions, dtype=np.float32)[:, None] * frequencies
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)


def rotate(x: jax.Array, turns: jax.Array) -> jax.Array:
    """Rotates x [T, heads, D] in the pairs (i, i + R / 2) of the first R features. turns [T, 1, R] are rows of `rotary_table`."""
    cos, sin = jnp.split(turns, 2, axis=-1)
    half = cos.shape[-1]
    first, second, rest = jnp.split(x, (half, 2 * half), axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def _of_layer_type(path: object, name: str, fields: Mapping[str, Any], layer_type: str | None) -> Mapping[str, Any]:
    """The fields for a type of layers: newer files may nest them, `{"full_attention": {…}, "sliding_attention": {…}}`."""
    nested = {key: value for key, value in fields.items() if isinstance(value, Mapping)}
    if not nested:
        return fields
    if layer_type in nested:
        found: Mapping[str, Any] = nested[layer_type]
    elif all(value == next(iter(nested.values())) for value in nested.values()):
        found = next(iter(nested.values()))
    else:
        why = f"says nothing of {layer_type}" if layer_type else "the layers have no types"
        raise ModelError(f"{path}: {name} differs between {', '.join(nested)}, but {why}")
    return {**{key: value for key, value in fields.items() if key not in nested}, **found}


def _checked(path: object, size: int, fields: _Fields) -> Rope:
    if fields.rope_type is not None and fields.type is not None and fields.rope_type != fields.type:
        raise ModelError(f"{path}: rope_type is {fields.rope_type!r}, but type is {fields.type!r}: keep one of them")
    kind = fields.rope_type or fields.type or "default"
    if kind not in _NEEDED:
        raise ModelError(f"{path}: rope scaling {kind!r} is not supported, only 'linear', 'llama3' and 'yarn'")
    if fields.partial_rotary_factor not in (None, 1.0):
        raise ModelError(f"{path}: partial_rotary_factor {fields.partial_rotary_factor} is not supported: all of a head is rotated")
    missing = [name for name in _NEEDED[kind] if getattr(fields, name) is None]
    if missing:
        raise ModelError(f"{path}: rope scaling {kind!r} needs {', '.join(missing)}")
    if kind == "default" and fields.factor is not None:
        raise ModelError(f"{path}: rope scaling has a factor of {fields.factor}, but no rope_type that says what it divides")
    theta = _positive(path, "rope_theta", _DEFAULT_THETA if fields.rope_theta is None else fields.rope_theta)
    if kind == "default":
        return Rope(size, theta)
    assert fields.factor is not None
    factor = _positive(path, "factor", fields.factor)
    if kind == "linear":
        return Rope(size, theta, RopeScaling("linear", factor))
    if kind == "yarn":
        return Rope(size, theta, _yarn(path, fields, factor))
    low, high, original = fields.low_freq_factor, fields.high_freq_factor, fields.original_max_position_embeddings
    assert low is not None and high is not None and original is not None
    if not 0 < low < high < math.inf:
        raise ModelError(f"{path}: low_freq_factor {low} must be above 0 and below high_freq_factor {high}")
    return Rope(
        size, theta, RopeScaling("llama3", factor, low, high, int(_positive(path, "original_max_position_embeddings", original)))
    )


def _yarn(path: object, fields: _Fields, factor: float) -> RopeScaling:
    if fields.mscale or fields.mscale_all_dim:
        raise ModelError(f"{path}: rope scaling 'yarn' with mscale is not supported")
    fast, slow = (
        _positive(path, name, default if given is None else given)
        for name, given, default in (("beta_fast", fields.beta_fast, 32.0), ("beta_slow", fields.beta_slow, 1.0))
    )
    if slow > fast:
        raise ModelError(f"{path}: beta_slow {slow} must not be above beta_fast {fast}")
    assert fields.original_max_position_embeddings is not None
    return RopeScaling(
        "yarn",
        factor,
        original_context=int(_positive(path, "original_max_position_embeddings", fields.original_max_position_embeddings)),
        beta_fast=fast,
        beta_slow=slow,
        truncate=fields.truncate is not False,
        amplitude=_positive(
            path, "attention_factor", yarn_amplitude(factor) if fields.attention_factor is None else fields.attention_factor
        ),
    )


def _positive(path: object, name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ModelError(f"{path}: {name} is {value}, but must be above 0")
    return value
