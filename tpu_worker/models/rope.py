"""Rotary position embedding (Su et al. 2021): its frequencies, as a model's files describe them, and its table."""

import math
from collections.abc import Callable, Mapping
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
    ones, and blends in between. "yarn" (Peng et al. 2023) does so, too, with bounds in turns within the original context.
    "longrope" (Ding et al. 2024) divides each by a factor of its own, of which there are two sets: `short`, and `long` where
    sequences may be longer than the original context. A GGUF file holds them as tensors, then both are empty here.
    """

    kind: Literal["linear", "llama3", "yarn", "longrope"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192  # tokens
    beta_fast: float = 32.0  # turns within the original context: from so many on a frequency is kept …
    beta_slow: float = 1.0  # … and up to so many it is divided
    truncate: bool = True  # the bounds are rounded to whole frequencies
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()
    amplitude: float = 1.0  # cosines and sines are multiplied by it

    def is_long(self, num_positions: int) -> bool:
        """Whether sequences of so many tokens go beyond the original context."""
        return num_positions > self.original_context


@dataclass(frozen=True, slots=True)
class Rope:
    """The rotation of a layer's queries and keys."""

    size: int  # of a head: features that are rotated, in the pairs (i, i + size / 2)
    theta: float
    scaling: RopeScaling | None = None

    @property
    def amplitude(self) -> float:
        """What cosines and sines are multiplied by."""
        return 1.0 if self.scaling is None else self.scaling.amplitude

    def inverse_frequencies(self, num_positions: int = 0) -> Float32Array:
        """Rotary frequencies in radians per position, [size // 2] float32, for sequences of up to num_positions tokens."""
        exponents = np.arange(0, self.size, 2, dtype=np.float32) / np.float32(self.size)
        frequencies: Float32Array = (1.0 / np.float32(self.theta) ** exponents).astype(np.float32)
        scaling = self.scaling
        if scaling is None:
            return frequencies
        match scaling.kind:
            case "linear":
                return frequencies / np.float32(scaling.factor)
            case "longrope":
                divisors = scaling.long if scaling.is_long(num_positions) else scaling.short
                return (frequencies / np.array(divisors, np.float32)).astype(np.float32) if divisors else frequencies
            case "llama3":
                turns = scaling.original_context * frequencies / (2 * np.pi)
                share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
            case "yarn":
                share = 1.0 - self._yarn_ramp(scaling)
        kept = np.clip(np.asarray(share), 0.0, 1.0)
        return (frequencies * (kept + (1 - kept) / scaling.factor)).astype(np.float32)

    def _yarn_ramp(self, scaling: RopeScaling) -> Float32Array:
        """Of each frequency how much it is divided: 0 and less, not at all; 1 and more, wholly."""

        def index_of(turns: float) -> float:
            return self.size * math.log(scaling.original_context / (turns * 2 * math.pi)) / (2 * math.log(self.theta))

        low, high = index_of(scaling.beta_fast), index_of(scaling.beta_slow)
        if scaling.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.size - 1)
        ramp: Float32Array = ((np.arange(self.size // 2) - low) / ((high - low) or 0.001)).astype(np.float32)
        return ramp


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
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    truncate: bool | None = None
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None


_DEFAULT_THETA = 10000.0  # of transformers, where a config.json names none
_NEEDED = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (),
    "longrope": ("short_factor", "long_factor"),
    "dynamic": ("factor",),
}


def rope_from_config(
    path: object, config: Mapping[str, Any], size: int, layer_type: str | None = None, default_theta: float = _DEFAULT_THETA
) -> Rope:
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
        return _checked(path, size, msgspec.convert(said, _Fields), config.get("max_position_embeddings"), default_theta)
    except msgspec.ValidationError as error:
        raise ModelError(f"{path}: rotary embedding: {error}") from error


def rope_scaling_from_gguf(
    path: object, kind: object, factor: float | None, number: Callable[[str, float | None], float]
) -> RopeScaling | None:
    """The scaling of a GGUF file; a factor without a kind is linear, as llama.cpp has it. Raises ModelError.

    number(key, default): what the file says besides, under `rope.scaling.`; without a default it must say it.
    """
    kind = kind if kind is not None else "linear" if factor is not None else "none"
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise ModelError(f"{path}: rope scaling {kind!r} is not supported, only 'linear' and 'yarn'")
    if factor is None:
        raise ModelError(f"{path}: rope.scaling.factor is missing, though rope.scaling.type is {kind!r}")
    factor = _positive(path, "rope.scaling.factor", factor)
    if kind == "linear":
        return RopeScaling("linear", factor)
    log_multiplier = number("yarn_log_multiplier", 0.0)
    amplitude = yarn_amplitude(factor)
    if log_multiplier:
        amplitude /= yarn_amplitude(factor, log_multiplier)
    return RopeScaling(
        "yarn",
        factor,
        original_context=int(_positive(path, "rope.scaling.original_context_length", number("original_context_length", None))),
        beta_fast=_positive(path, "rope.scaling.yarn_beta_fast", number("yarn_beta_fast", 32.0)),
        beta_slow=_positive(path, "rope.scaling.yarn_beta_slow", number("yarn_beta_slow", 1.0)),
        amplitude=amplitude * number("attn_factor", 1.0),
    )


def yarn_amplitude(factor: float, multiplier: float = 1.0) -> float:
    """What YaRN multiplies cosines and sines by: attention over longer contexts is sharper."""
    return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0


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


def _checked(path: object, size: int, fields: _Fields, context: object, default_theta: float) -> Rope:
    if fields.rope_type is not None and fields.type is not None and fields.rope_type != fields.type:
        raise ModelError(f"{path}: rope_type is {fields.rope_type!r}, but type is {fields.type!r}: keep one of them")
    kind = fields.rope_type or fields.type or "default"
    if kind == "su" or (kind == "yarn" and fields.short_factor is not None):  # Phi-3's older names of it
        kind = "longrope"
    if kind not in _NEEDED:
        supported = ", ".join(repr(name) for name in _NEEDED)
        raise ModelError(f"{path}: rope scaling {kind!r} is not supported, only {supported}")
    missing = [name for name in _NEEDED[kind] if getattr(fields, name) is None]
    if missing:
        raise ModelError(f"{path}: rope scaling {kind!r} needs {', '.join(missing)}")
    if kind == "default" and fields.factor not in (None, 1.0):
        raise ModelError(f"{path}: rope scaling has a factor of {fields.factor}, but no rope_type that says what it divides")
    theta = _positive(path, "rope_theta", default_theta if fields.rope_theta is None else fields.rope_theta)
    rotated = size if fields.partial_rotary_factor is None else int(size * fields.partial_rotary_factor)
    if not 2 <= rotated <= size or rotated % 2:
        raise ModelError(
            f"{path}: partial_rotary_factor {fields.partial_rotary_factor} of heads of {size} is {rotated}, not even and in them"
        )
    return Rope(rotated, theta, _scaling(path, kind, rotated, fields, context))


def _scaling(path: object, kind: str, size: int, fields: _Fields, context: object) -> RopeScaling | None:
    factor = None if fields.factor is None else _positive(path, "factor", fields.factor)
    if kind in ("default", "dynamic"):  # "dynamic" changes what goes beyond max_position_embeddings, which nothing here does
        return None
    if kind == "linear":
        assert factor is not None
        return RopeScaling("linear", factor)
    longest = context if isinstance(context, int) and not isinstance(context, bool) else None
    given = fields.original_max_position_embeddings
    if (original := longest if given is None else given) is None:
        raise ModelError(f"{path}: rope scaling {kind!r} needs original_max_position_embeddings")
    original = int(_positive(path, "original_max_position_embeddings", original))
    if kind == "llama3":
        low, high = fields.low_freq_factor, fields.high_freq_factor
        assert low is not None and high is not None and factor is not None
        if not 0 < low < high < math.inf:
            raise ModelError(f"{path}: low_freq_factor {low} must be above 0 and below high_freq_factor {high}")
        return RopeScaling("llama3", factor, low, high, original)
    factor = factor if factor is not None else (longest or original) / original
    amplitude = None if fields.attention_factor is None else _positive(path, "attention_factor", fields.attention_factor)
    if kind == "longrope":
        short, long = fields.short_factor, fields.long_factor
        assert short is not None and long is not None
        for name, divisors in (("short_factor", short), ("long_factor", long)):
            if len(divisors) != size // 2 or any(_positive(path, name, one) <= 0 for one in divisors):
                raise ModelError(f"{path}: {name} has {len(divisors)} numbers, one for each of {size // 2} frequencies is wanted")
        if amplitude is None:
            amplitude = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
        return RopeScaling("longrope", factor, original_context=original, short=short, long=long, amplitude=amplitude)
    if amplitude is None:
        amplitude = yarn_amplitude(factor)
        if fields.mscale and fields.mscale_all_dim:
            amplitude = yarn_amplitude(factor, fields.mscale) / yarn_amplitude(factor, fields.mscale_all_dim)
    fast, slow = _positive(path, "beta_fast", fields.beta_fast or 32.0), _positive(path, "beta_slow", fields.beta_slow or 1.0)
    if slow > fast:
        raise ModelError(f"{path}: beta_slow {slow} must not be above beta_fast {fast}")
    return RopeScaling(
        "yarn",
        factor,
        original_context=original,
        beta_fast=fast,
        beta_slow=slow,
        truncate=fields.truncate is not False,
        amplitude=amplitude,
    )


def _positive(path: object, name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ModelError(f"{path}: {name} is {value}, but must be above 0")
    return value
