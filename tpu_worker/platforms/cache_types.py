"""What keys and values are kept as, and how they are rounded to it.

Floats of 8 bits (Micikevicius et al. 2022) are rounded to the nearest, and what is too large to the largest. e4m3 is off by a 16th
of a number at most from 2^-6 to 448, and by 2^-10 below; e5m2 by an 8th from 2^-14 to 57344, and by 2^-17 below. Integers of 8 bits
have a scale for each key and each value, which is rounded up to bfloat16: no number is off by more than (1 + 2^-7) / 254 of the
largest beside it.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from protocol.config import FloatType, KvCacheDtype

CacheType: TypeAlias = Literal["float32", "bfloat16", "fp8_e4m3", "fp8_e5m2", "int8"]

DTYPES: Mapping[CacheType, jnp.dtype] = MappingProxyType(
    {
        "float32": jnp.dtype(jnp.float32),
        "bfloat16": jnp.dtype(jnp.bfloat16),
        "fp8_e4m3": jnp.dtype(jnp.float8_e4m3fn),
        "fp8_e5m2": jnp.dtype(jnp.float8_e5m2),
        "int8": jnp.dtype(jnp.int8),
    }
)
_LARGEST: Mapping[CacheType, float] = MappingProxyType({"fp8_e4m3": 448.0, "fp8_e5m2": 57344.0})
_MOST = 127  # of int8: -128 has no counterpart


def resolve(asked: KvCacheDtype, dtype: FloatType) -> CacheType:
    """What --kv-cache-dtype means where floats are kept as `dtype`."""
    return dtype if asked == "auto" else asked


def round_to(x: jax.Array, kept: CacheType) -> jax.Array:
    """x float32 as this type, of floats; NaN stays NaN."""
    if (largest := _LARGEST.get(kept)) is not None:  # else what is larger would become NaN, or infinity
        x = jnp.clip(x, -largest, largest)
    return x.astype(DTYPES[kept])


def quantise(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Heads x [..., D] float32 as (int8 [..., D], scales [...] bfloat16), whose product they are about.

    Of a head that holds NaN or infinity the scale is that.
    """
    # The largest by its bits, which are ordered as numbers without a sign are, NaN behind all: XLA's CPU loses NaN among floats.
    largest = jnp.max(jax.lax.bitcast_convert_type(jnp.abs(x), jnp.int32), axis=-1)
    steps = jax.lax.bitcast_convert_type(largest, jnp.float32) / _MOST
    bits = jax.lax.bitcast_convert_type(steps, jnp.uint32)
    # Rounded up: with a smaller scale the largest would be clipped.
    larger = jax.lax.bitcast_convert_type((bits + jnp.uint32(0xFFFF)) & jnp.uint32(0xFFFF0000), jnp.float32)
    scales = jnp.where(jnp.isfinite(steps), larger, steps)
    numbers = jnp.rint(x / jnp.where(scales > 0, scales, 1.0)[..., None])
    return jnp.where(jnp.isfinite(numbers), numbers, 0.0).astype(jnp.int8), scales.astype(jnp.bfloat16)
