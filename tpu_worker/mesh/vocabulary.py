"""The vocabulary as one of several shards has it: a part of the logits of each row, and what only all shards together can tell.

Shards have the tokens in order, as many each; behind the last token of all, the parts are filled up. On one chip a part is all
there is, and nothing is communicated.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from tpu_worker.largest import with_one_zero
from tpu_worker.mesh.layout import AXIS


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Within a program of several shards, that of the shard which runs it."""

    size: int  # tokens of all shards
    num_shards: int = 1

    @property
    def width(self) -> int:
        """Tokens of one shard, with what fills it up."""
        return -(-self.size // self.num_shards)

    @property
    def is_whole(self) -> bool:
        """Whether one shard has all of it."""
        return self.num_shards == 1

    @property
    def first(self) -> jax.Array:
        """The first token id [] int32 of this shard."""
        return jnp.int32(0) if self.is_whole else jax.lax.axis_index(AXIS).astype(jnp.int32) * self.width

    @property
    def token_ids(self) -> jax.Array:
        """Those of this shard [width] int32; `size` and more are none."""
        return self.first + jnp.arange(self.width, dtype=jnp.int32)

    def places(self, token_ids: jax.Array) -> jax.Array:
        """Where this shard has these tokens, of any shape; `width` for those of others and for what is none."""
        places = token_ids - self.first
        return jnp.where((places >= 0) & (places < self.width) & (token_ids < self.size), places, self.width)

    def fill(self, values: jax.Array, filler: float) -> jax.Array:
        """values [R, width], with another one where there is no token."""
        if self.width * self.num_shards == self.size:
            return values
        return jnp.where(self.token_ids < self.size, values, jnp.asarray(filler, values.dtype))

    def words(self, bits: jax.Array) -> jax.Array:
        """Of bits [R, ceil(size / 32)] uint32 of all tokens, in order, those of this shard: [R, ceil(width / 32)]."""
        if self.is_whole:
            return bits
        count = -(-self.width // 32)
        padded = jnp.pad(bits, ((0, 0), (0, self.num_shards * count + 1 - bits.shape[1])))
        words = jax.lax.dynamic_slice_in_dim(padded, self.first // 32, count + 1, axis=1)
        shift = (self.first % 32).astype(jnp.uint32)
        following = jnp.where(shift == 0, jnp.uint32(0), words[:, 1:] << (32 - shift) % 32)
        return words[:, :-1] >> shift | following

    def total(self, parts: jax.Array) -> jax.Array:
        """The sum over the shards, of any shape. Of integers it does not depend on how many shards there are."""
        if self.is_whole:
            return parts
        total: jax.Array = jax.lax.psum(parts, AXIS)
        return total

    def maximum(self, parts: jax.Array) -> jax.Array:
        """The largest among the shards, of any shape."""
        if self.is_whole:
            return parts
        largest: jax.Array = jax.lax.pmax(parts, AXIS)
        return largest

    def largest(self, values: jax.Array, places: jax.Array, *others: jax.Array) -> tuple[jax.Array, ...]:
        """Of what each shard found by `platform.Largest`, values and places [R]: the largest value of all [R], and the token id [R]
        that it is of. others [R] of 32 bits: what else a shard knows of what it found; of the largest of all it comes too.

        One collective, of a few words a row.
        """
        if self.is_whole:
            return values, places, *others
        words = [jax.lax.bitcast_convert_type(array, jnp.int32) for array in (values, *others)]
        gathered = jax.lax.all_gather(jnp.stack([self.first + places, *words]), AXIS, axis=1)  # [words, shards, R]
        token_ids, tops = gathered[0], jax.lax.bitcast_convert_type(gathered[1], jnp.float32)
        broken = jnp.any(~(tops < jnp.inf), axis=0)
        top = jnp.max(jnp.where(broken, -jnp.inf, tops), axis=0)
        nobody = 2**31 - 1
        first = jnp.min(jnp.where((tops == top) | broken, token_ids, nobody), axis=0)  # shards have them in order
        found = [jnp.sum(jnp.where(token_ids == first, array, 0), axis=0) for array in gathered[2:]]
        return jnp.where(broken, jnp.nan, top), first, *map(jax.lax.bitcast_convert_type, found, [one.dtype for one in others])

    def most(self, values: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        """The largest values [R, count] among values [R, width] of all shards, in falling order, and their token ids; of equals,
        those that come first. There are as many tokens at least."""
        # top_k compares bits, by which 0.0 is above -0.0.
        best, places = jax.lax.top_k(with_one_zero(values), min(count, self.width))
        if self.is_whole:
            return best, places
        words = jnp.stack([jax.lax.bitcast_convert_type(best, jnp.int32), self.first + places])
        gathered, token_ids = jax.lax.all_gather(words, AXIS, axis=2, tiled=True)  # in the shards' order: that of the token ids
        best, places = jax.lax.top_k(jax.lax.bitcast_convert_type(gathered, jnp.float32), count)
        return best, jnp.take_along_axis(token_ids, places, axis=1)
