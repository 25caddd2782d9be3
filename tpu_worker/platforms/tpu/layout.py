"""How the cache lies in the chip's memory."""

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from tpu_worker.lanes import LANES, fill_lanes
from tpu_worker.platforms.cache_types import DTYPES, CacheType, quantise, round_to

_TILE = 32  # bytes of a lane in a tile


class ScaledCache(NamedTuple):
    """A cache of integers, or what goes into it."""

    rows: jax.Array  # [NB, KH, page, width] int8
    # [NB, KH, 1, lanes] int32: by position, the bits of two bfloat16, the scale of its key and, in the upper half, that of its
    # value. Positions lie along lanes, as those of scores do; there are as many lanes as fill whole registers.
    scales: jax.Array


Cache: TypeAlias = jax.Array | ScaledCache  # of one layer


def group_of(dtype: jax.typing.DTypeLike) -> int:
    """Rows of this type in a tile: no fewer can be written at once."""
    return _TILE // jnp.dtype(dtype).itemsize


def split_scales(pairs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Those of keys and of values, float32, of pairs as `ScaledCache` has them."""
    k, v = pairs << 16, pairs & jnp.int32(-65536)
    return jax.lax.bitcast_convert_type(k, jnp.float32), jax.lax.bitcast_convert_type(v, jnp.float32)


def join_scales(k: jax.Array, v: jax.Array) -> jax.Array:
    """The reverse, of float32 that bfloat16 can hold."""
    k_bits, v_bits = (jax.lax.bitcast_convert_type(x, jnp.int32) for x in (k, v))
    pairs: jax.Array = jax.lax.shift_right_logical(k_bits, 16) | (v_bits & jnp.int32(-65536))
    return pairs


@dataclass(frozen=True, slots=True)
class RowLayout:
    """A row of the cache: the key of one position of one head, and its value beside it.

    Heads of up to 64 share one register of lanes, so that nothing is padded: the key lies in the lower half, the value in the
    upper. Queries are zero in the upper half then, and of the weighted sum of whole rows the upper half is the output. Larger ones
    have whole registers for each, which pads heads of 80 and 96 to 128.
    """

    head_dim: int
    kept: CacheType = "bfloat16"

    @property
    def is_shared(self) -> bool:
        """Whether key and value share registers."""
        return self.head_dim <= LANES // 2

    @property
    def width(self) -> int:
        """Lanes of a row."""
        return LANES if self.is_shared else 2 * self.operand

    @property
    def operand(self) -> int:
        """Lanes of a query, and of an output."""
        return -(-self.head_dim // LANES) * LANES

    @property
    def operand_dtype(self) -> jnp.dtype:
        """What queries and weights are rounded to: bfloat16 holds all that 8 bits do."""
        return DTYPES["float32" if self.kept == "float32" else "bfloat16"]

    def make(self, num_blocks: int, page: int, num_kv_heads: int) -> Cache:
        """An empty cache."""
        rows = jnp.zeros((num_blocks, num_kv_heads, page, self.width), DTYPES[self.kept])
        if self.kept != "int8":
            return rows
        return ScaledCache(rows, jnp.zeros((num_blocks, num_kv_heads, 1, fill_lanes(page)), jnp.int32))

    @property
    def new_dtype(self) -> jnp.dtype:
        """What new rows come as, before `keep`: what is rounded further, or has scales, in float32."""
        return DTYPES["bfloat16" if self.kept == "bfloat16" else "float32"]

    def keep(self, rows: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Rows [..., width] of `new_dtype`, as the cache has them, and the scales of integers, [...] int32 pairs."""
        if self.kept != "int8":
            return (rows if self.kept == "bfloat16" else round_to(rows, self.kept)), None
        numbers, scales = quantise(rows.reshape(*rows.shape[:-1], 2, self.width // 2))  # zeros behind a head are not its largest
        k, v = scales[..., 0].astype(jnp.float32), scales[..., 1].astype(jnp.float32)
        return numbers.reshape(rows.shape), join_scales(k, v)
