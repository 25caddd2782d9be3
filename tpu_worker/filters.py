"""Draws under top-k, top-p and min-p, without sorting a vocabulary and, mostly, without searching for where a filter cuts.

What filters keep of a row is its most likely tokens, down to some threshold. So the token with the largest score of all is drawn
and looked at: if the filters keep it, it is also the one with the largest score of those that they keep. If not, they keep none
that is as unlikely or less, and another is drawn among those that are likelier. (Rejecting draws is FlashInfer's idea; here scores
stay what they are, so that what comes of it is the very token that filtering first would give.) Mostly that takes one round or two.
Each leaves half of what is likelier, in the mean: many more than the logarithm of the vocabulary's size do not happen.

Whatever is added up over a vocabulary is integers: sums are exact, and do not depend on what is added first or by which shard.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tpu_worker.largest import with_one_zero
from tpu_worker.mesh.vocabulary import Vocabulary
from tpu_worker.platforms.platform import Sampling

_BITS = 32  # of a key
_EVERYTHING = np.uint32(2**32 - 1)


class Filters(NamedTuple):
    """What R rows ask for, each [R]."""

    wanted: jax.Array  # bool: any of them
    top_k: jax.Array  # int32; 0: off
    top_p: jax.Array  # float32; 1: off
    min_p: jax.Array  # float32; 0: off


class _Weights(NamedTuple):
    """Sums of tokens' weights, exact: of each row [R] whole units, and parts of one."""

    whole: jax.Array  # uint32
    parts: jax.Array  # uint32, 2^-bits of a unit each

    def less(self, other: "_Weights") -> jax.Array:
        """Whether [R] these are smaller."""
        return (self.whole < other.whole) | ((self.whole == other.whole) & (self.parts < other.parts))


def draw_filtered(
    logits: jax.Array, scores: jax.Array, possible: jax.Array, filters: Filters, vocabulary: Vocabulary, sampling: Sampling
) -> jax.Array:
    """The token [R] with the largest score among those that min-p, top-k and top-p leave, in this order.

    logits [R, width] are those after temperature, the largest 0; scores [R, width]. possible [R] bool: where these can be drawn
    from. Of other rows the result is any, and without filters it is the token with the largest score.
    """
    weights = jnp.exp(logits)
    stays = weights >= jnp.where(filters.wanted, filters.min_p, 0.0)[:, None]
    keys = vocabulary.fill(jnp.where(stays, _sortable(logits), np.uint32(0)), 0)
    bits, fraction = _unit_bits(vocabulary.size)
    units = jnp.where(stays, weights * np.float32(2.0**fraction), 0.0).astype(jnp.uint32)
    k = jnp.where(filters.wanted & (filters.top_k > 0), jnp.minimum(filters.top_k, vocabulary.size), vocabulary.size)
    nucleus = filters.wanted & (filters.top_p < 1)

    def weigh(which: jax.Array) -> tuple[jax.Array, _Weights]:
        """How many tokens [R] these are, [R, width] bool, and what they weigh."""
        some = jnp.where(which, units, np.uint32(0))
        sums = [jnp.sum(which, axis=-1, dtype=jnp.uint32), jnp.sum(some >> bits, axis=-1), jnp.sum(some & (2**bits - 1), axis=-1)]
        count, whole, parts = vocabulary.total(jnp.stack(sums))
        return count.astype(jnp.int32), _Weights(whole + (parts >> bits), parts & (2**bits - 1))

    def share_of_nucleus() -> _Weights:
        wanted = nucleus & (k < vocabulary.size)
        least = jax.lax.cond(
            jnp.any(wanted),
            lambda: kth_largest(keys, jnp.where(wanted, k, vocabulary.size), vocabulary, sampling.bits_at_once),
            lambda: jnp.zeros(len(logits), jnp.uint32),
        )
        _, total = weigh(keys >= least[:, None])
        share = _share(total, filters.top_p, bits)
        return _Weights(*(jnp.where(nucleus, part, _EVERYTHING) for part in share))

    everything = jnp.full(len(logits), _EVERYTHING)
    share = jax.lax.cond(jnp.any(nucleus), share_of_nucleus, lambda: _Weights(everything, everything))

    def draw(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        limits, tokens, settled = state
        top, place = sampling.largest(jnp.where(keys > limits[:, None], scores, -jnp.inf))
        _, drawn, drawn_keys = vocabulary.largest(top, place, jnp.take_along_axis(keys, place[:, None], axis=1)[:, 0])
        likelier, weight = weigh(keys > drawn_keys[:, None])
        stays = (likelier < k) & weight.less(share)
        return jnp.where(stays, limits, drawn_keys), jnp.where(settled, tokens, drawn), settled | stays

    start = (jnp.zeros(len(logits), jnp.uint32), jnp.zeros(len(logits), jnp.int32), ~possible)
    _, tokens, _ = jax.lax.while_loop(lambda state: ~jnp.all(state[2]), draw, start)
    return tokens


def kth_largest(keys: jax.Array, k: jax.Array, vocabulary: Vocabulary, bits_at_once: int) -> jax.Array:
    """Some t [R] uint32 of which as many keys [R, width] uint32 of all shards are at least t as are at least the k-th largest,
    k [R] int32; 0 where k is the number of all.

    Found from its highest bits on, some at once (1, 2, 4 or 8): which costs more to compute and is fewer passes over the keys. It
    ends when no more than k are left, before the last bits are known.
    """
    digits = range(1, 1 << bits_at_once)

    def refine(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        shift, found, count = state
        pivots = [found | jnp.uint32(digit) << shift for digit in digits]
        counts = vocabulary.total(jnp.stack([jnp.sum(keys >= pivot[:, None], axis=-1, dtype=jnp.int32) for pivot in pivots]))
        enough = counts >= k
        digit = jnp.sum(enough, axis=0, dtype=jnp.uint32)
        count = jnp.min(jnp.where(enough, counts, count), axis=0)
        return shift - bits_at_once, found | digit << shift, count

    def goes_on(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        shift, _, count = state
        return (shift < _BITS) & jnp.any(count > k)  # below 0, shift wraps around

    start = (jnp.uint32(_BITS - bits_at_once), jnp.zeros(k.shape, jnp.uint32), jnp.full(k.shape, vocabulary.size, jnp.int32))
    _, found, _ = jax.lax.while_loop(goes_on, refine, start)
    return found


def _unit_bits(size: int) -> tuple[int, int]:
    """Bits of a weight's lower part, so that neither part of as many weights overflows 32, and of both; the weight of 1 is one
    more."""
    bits = 32 - size.bit_length()
    return bits, min(2 * bits, 30)


def _share(total: _Weights, top_p: jax.Array, bits: int) -> _Weights:
    """What of a total belongs to a nucleus, rounded up. Each operation is exact or the only one of its line that rounds: so it
    does not matter which of them a compiler joins."""
    part = np.float32(2.0**-bits)
    sums = total.whole.astype(jnp.float32) + total.parts.astype(jnp.float32) * part
    share = jnp.minimum(top_p * sums, np.float32(2**32 - 256))  # the largest below 2^32
    whole, rest = share.astype(jnp.uint32), jnp.ceil(jax.lax.rem(share, np.float32(1)) / part).astype(jnp.uint32)
    return _Weights(whole, jnp.where(whole == 0, jnp.maximum(rest, 1), rest))


def _sortable(values: jax.Array) -> jax.Array:
    """uint32 that compare as the float32 values do, all above 0."""
    bits = jax.lax.bitcast_convert_type(with_one_zero(values), jnp.uint32)
    return jnp.where(bits >> 31 != 0, ~bits, bits | np.uint32(2**31))
