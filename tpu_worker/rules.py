"""Tokens that a request rules out or favours: allowed_token_ids, bad_words and logit_bias, in this order, as in vLLM.

What a slot needs for it is much larger than its other parameters, and few requests have any: it lies in an array of its own, which
only the sampler sees, and is uploaded only for those that do.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from protocol.codec import Int32Array
from protocol.params import BANNED, MAX_BAD_WORD_TOKENS, MAX_BAD_WORDS, MAX_LOGIT_BIAS, EngineParams
from tpu_worker.contexts import Contexts
from tpu_worker.lanes import fill_lanes
from tpu_worker.mesh.vocabulary import Vocabulary
from tpu_worker.token_bits import allowed_tokens

_NUM_WORDS = 2 * MAX_BAD_WORDS  # each with and without a space before it
_NOTHING = -1  # no token
_PROMPT = -2  # no token of an output, and not nothing


class SlotRules(NamedTuple):
    """The rules of R rows: where they lie among those of all slots, so that they are read only where a row has any."""

    rules: jax.Array  # [S, rules_width(V)] int32
    slots: jax.Array  # [R] int32


class _Rules(NamedTuple):
    """What `pack_rules` packed of R rows."""

    allowed: jax.Array  # [R, ceil(V / 32)] uint32: a bit for each token
    bias_ids: jax.Array  # [R, MAX_LOGIT_BIAS] int32, padded with _NOTHING
    biases: jax.Array  # [R, MAX_LOGIT_BIAS] float32
    bad_words: jax.Array  # [R, _NUM_WORDS, MAX_BAD_WORD_TOKENS] int32, padded with _NOTHING at the left


def rules_width(vocab_size: int) -> int:
    """int32 words of what one slot holds."""
    return fill_lanes(_ends(vocab_size)[-1])


def pack_rules(params: EngineParams, vocab_size: int) -> Int32Array:
    """What a slot holds for a request, [rules_width(vocab_size)] int32."""
    packed = np.full(rules_width(vocab_size), _NOTHING, np.int32)
    allowed, bias_ids, biases, bad_words, _ = np.split(packed, _ends(vocab_size))
    if params.allowed_bits:
        allowed[:] = np.frombuffer(params.allowed_bits, "<i4")
    bias_ids[: len(params.logit_bias)] = list(params.logit_bias)
    values = np.array(list(params.logit_bias.values()), np.float32)
    biases[: len(values)] = np.where(values > BANNED, values, np.float32(-np.inf)).view(np.int32)
    for row, word in zip(bad_words.reshape(_NUM_WORDS, MAX_BAD_WORD_TOKENS), params.bad_words, strict=False):
        row[MAX_BAD_WORD_TOKENS - len(word) :] = word
    return packed


def make_rules(num_slots: int, vocab_size: int) -> jax.Array:
    """Of all slots, [S, rules_width(vocab_size)] int32: zeros, which are never read."""
    return jnp.zeros((num_slots, rules_width(vocab_size)), jnp.int32)


def set_rules(rules: jax.Array, slot: jax.Array, packed: jax.Array) -> jax.Array:
    """Puts `pack_rules`'s array into a slot's place; slot [] int32."""
    return rules.at[slot].set(packed)


def apply_rules(
    logits: jax.Array, rules: SlotRules, num_prompt: jax.Array, contexts: Contexts, vocabulary: Vocabulary
) -> jax.Array:
    """logits [R, width] float32 with -inf for what is ruled out, and the biases added.

    num_prompt [R] int32, tokens of each prompt: bad words are looked for behind it, as in vLLM.
    """
    row = jnp.arange(len(logits))[:, None]
    mine = _unpack(rules.rules.at[rules.slots].get(mode="clip"), vocabulary.size)
    logits = jnp.where(allowed_tokens(vocabulary.words(mine.allowed), vocabulary.width), logits, -jnp.inf)

    positions = contexts.lengths[:, None] - jnp.arange(MAX_BAD_WORD_TOKENS - 1, 0, -1)
    before = contexts.at(positions)
    before = jnp.where(positions >= num_prompt[:, None], before, _PROMPT)[:, None, :]
    begun = mine.bad_words[:, :, :-1]
    ends = jnp.all((begun == _NOTHING) | (begun == before), axis=-1)
    forbidden = jnp.where(ends, mine.bad_words[:, :, -1], _NOTHING)
    # What is no token, or another shard's, is outside, where a scatter drops it.
    logits = logits.at[row, vocabulary.places(forbidden)].set(-jnp.inf, mode="drop")
    return logits.at[row, vocabulary.places(mine.bias_ids)].add(mine.biases, mode="drop")


def _ends(vocab_size: int) -> tuple[int, int, int, int]:
    """Where the parts of `_Rules` end, in what is packed."""
    allowed = -(-vocab_size // 32)
    biases = allowed + 2 * MAX_LOGIT_BIAS
    return allowed, allowed + MAX_LOGIT_BIAS, biases, biases + _NUM_WORDS * MAX_BAD_WORD_TOKENS


def _unpack(packed: jax.Array, vocab_size: int) -> _Rules:
    allowed, bias_ids, biases, bad_words, _ = jnp.split(packed, _ends(vocab_size), axis=1)
    return _Rules(
        jax.lax.bitcast_convert_type(allowed, jnp.uint32),
        bias_ids,
        jax.lax.bitcast_convert_type(biases, jnp.float32),
        bad_words.reshape(len(packed), _NUM_WORDS, MAX_BAD_WORD_TOKENS),
    )
