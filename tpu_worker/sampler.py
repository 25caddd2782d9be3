"""Chooses the next token of each row, on the device.

Every row is computed by itself: neither its neighbours, nor what they ask for, nor the width of the batch change a bit of what it
gets. What is done for a row follows from its own needs; those of all rows together decide only which code runs. Random numbers
derive from (seed of the request, position of the new token, token) alone.

The vocabulary may be cut among shards: each has some of a row's logits, and they tell each other a few words a row. The same logits
give the same token whatever the number of shards: what is added up before a choice is integers (`filters`), all else is either of
one token or a maximum.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from protocol.codec import Int32Array
from protocol.params import MAX_LOGPROBS, MAX_REPETITION_PENALTY, MAX_STOP_TOKEN_IDS, MIN_REPETITION_PENALTY, EngineParams
from tpu_worker.contexts import Contexts
from tpu_worker.filters import Filters, draw_filtered
from tpu_worker.gumbel import gumbel
from tpu_worker.largest import largest
from tpu_worker.logprobs import logprobs_of
from tpu_worker.mesh.vocabulary import Vocabulary
from tpu_worker.needs import DRAWS, EDITS, FILTERS, LOGPROBS, RULES, needs
from tpu_worker.penalties import Penalties, penalise
from tpu_worker.platforms.platform import Sampling
from tpu_worker.rules import SlotRules, apply_rules

_STOP_IDS = MAX_STOP_TOKEN_IDS + 8  # a request's own, and the model's ends of sequence
_INTS, _FLOATS = 6, 6
ROW_WIDTH = _INTS + _FLOATS + _STOP_IDS  # int32 words of a request's sampling parameters on the device
_CPU = Sampling()


class Rows(NamedTuple):
    """Sampling parameters of R rows, taken out of their packed form; each [R], stop_ids [R, _STOP_IDS]."""

    needs: jax.Array  # bits, as `needs` has them
    num_prompt: jax.Array
    min_length: jax.Array  # tokens, prompt included, below which stop ids are not drawn
    top_k: jax.Array  # 0: off
    seeds: jax.Array  # [R, 2] uint32, high word first
    temperature: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    repetition: jax.Array
    presence: jax.Array
    frequency: jax.Array
    stop_ids: jax.Array  # padded with -1


class Sampled(NamedTuple):
    """What sampling yields for R rows."""

    token_ids: jax.Array  # [R] int32; -1 where the logits were not finite
    logprobs: jax.Array  # [R, 1 + MAX_LOGPROBS] float32: of the chosen token, then of the most likely ones, in falling order
    ranks: jax.Array  # [R, 1 + MAX_LOGPROBS] int32: rank of the chosen token from 1, then the ids of the most likely ones


def pack_params(num_prompt_tokens: int, params: EngineParams) -> Int32Array:
    """A request's row for the device, [ROW_WIDTH] int32. Stop ids beyond _STOP_IDS still stop, but min_tokens misses them."""
    row = np.full(ROW_WIDTH, -1, np.int32)
    seed = params.seed % 2**64
    min_length = min(num_prompt_tokens + params.min_tokens, 2**31 - 1)
    row[:4] = needs(params), num_prompt_tokens, min_length, min(max(params.top_k, 0), 2**31 - 1)
    row[4:_INTS] = np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32).view(np.int32)
    floats = (
        params.temperature,
        params.top_p,
        params.min_p,
        min(max(params.repetition_penalty, MIN_REPETITION_PENALTY), MAX_REPETITION_PENALTY),
        params.presence_penalty,
        params.frequency_penalty,
    )
    row[_INTS : _INTS + _FLOATS] = np.array(floats, np.float32).view(np.int32)
    stop_ids = params.stop_token_ids[:_STOP_IDS]
    row[_INTS + _FLOATS : _INTS + _FLOATS + len(stop_ids)] = stop_ids
    return row


def sample(
    logits: jax.Array,
    likeliest: jax.Array,
    rows: Rows,
    contexts: Contexts,
    rules: SlotRules,
    vocabulary: Vocabulary | None = None,
    sampling: Sampling = _CPU,
) -> Sampled:
    """Draws the token behind the known ones of each row.

    logits [R, width] float32, of a shard's part of the vocabulary (None: of all of it), -inf where that is filled up; likeliest [R]
    int32, what `greedy` makes of them. Of a row that needs nothing, it is what comes.
    """
    vocabulary = vocabulary or Vocabulary(logits.shape[1])
    chooses = _have(rows, DRAWS | EDITS | RULES)
    token_ids = jax.lax.cond(
        jnp.any(chooses),
        lambda: jnp.where(
            chooses & (likeliest >= 0), _choose(logits, likeliest, rows, contexts, rules, vocabulary, sampling), likeliest
        ),
        lambda: likeliest,
    )
    wanted = _have(rows, LOGPROBS)
    nothing = jnp.zeros((logits.shape[0], 1 + MAX_LOGPROBS))
    logprobs, ranks = jax.lax.cond(
        jnp.any(wanted),
        lambda: logprobs_of(logits, token_ids, vocabulary),
        lambda: (nothing, nothing.astype(jnp.int32)),
    )
    return Sampled(token_ids, jnp.where(wanted[:, None], logprobs, 0.0), jnp.where(wanted[:, None], ranks, 0))


def greedy(logits: jax.Array) -> jax.Array:
    """The most likely token of each row [R] int32, the first of equals; -1 where logits [R, V] have NaN or +inf, or only -inf."""
    top, token_ids = largest(logits)
    return jnp.where(jnp.isfinite(top), token_ids, -1)


def unpack_params(packed: jax.Array) -> Rows:
    """What `pack_params` packed, of R rows [R, ROW_WIDTH]."""
    ints, floats, stop_ids = jnp.split(packed, (_INTS, _INTS + _FLOATS), axis=1)
    needs, num_prompt, min_length, top_k = ints[:, :4].T
    seeds = jax.lax.bitcast_convert_type(ints[:, 4:], jnp.uint32)
    temperature, top_p, min_p, repetition, presence, frequency = jax.lax.bitcast_convert_type(floats, jnp.float32).T
    return Rows(needs, num_prompt, min_length, top_k, seeds, temperature, top_p, min_p, repetition, presence, frequency, stop_ids)


def _have(rows: Rows, bits: int) -> jax.Array:
    """Which rows [R] need any of the bits."""
    return rows.needs & bits != 0


def _choose(
    logits: jax.Array,
    likeliest: jax.Array,
    rows: Rows,
    contexts: Contexts,
    rules: SlotRules,
    vocabulary: Vocabulary,
    sampling: Sampling,
) -> jax.Array:
    """The token [R] of rows that draw or whose logits are edited; -1 where nothing is left to choose."""
    ruled, edits, draws = _have(rows, RULES), _have(rows, EDITS), _have(rows, DRAWS)

    def follow_rules() -> jax.Array:
        return jnp.where(ruled[:, None], apply_rules(logits, rules, rows.num_prompt, contexts, vocabulary), logits)

    def edit(logits: jax.Array) -> jax.Array:
        penalties = Penalties(rows.num_prompt, rows.repetition, rows.presence, rows.frequency, rows.min_length, rows.stop_ids)
        context = contexts._replace(lengths=jnp.where(edits, contexts.lengths, 0))
        edited = penalise(logits, penalties, context, vocabulary)
        # Not where that leaves nothing: if a grammar allows an end and no more, min_tokens cannot be had.
        possible = vocabulary.maximum(jnp.max(edited, axis=-1)) > -jnp.inf
        return jnp.where((edits & possible)[:, None], edited, logits)

    logits = jax.lax.cond(jnp.any(ruled), follow_rules, lambda: logits)
    logits = jax.lax.cond(jnp.any(edits), edit, lambda logits: logits, logits)
    top = vocabulary.maximum(jnp.max(logits, axis=-1))
    possible = jnp.isfinite(top) & (likeliest >= 0)

    def best(scores: jax.Array) -> jax.Array:
        return vocabulary.largest(*sampling.largest(scores))[1]

    def draw() -> jax.Array:
        """Gumbel's trick: the largest of logits, to which noise is added, is a draw from their softmax."""
        # Below zero, so that no temperature makes it overflow.
        scaled: jax.Array = (logits - top[:, None]) / jnp.where(draws, rows.temperature, 1.0)[:, None]
        noise = gumbel(rows.seeds, contexts.lengths, vocabulary.token_ids)
        scores = jnp.where(draws[:, None], scaled + noise, logits)
        filtered = _have(rows, FILTERS)
        filters = Filters(filtered, rows.top_k, rows.top_p, rows.min_p)
        drawn: jax.Array = jax.lax.cond(
            jnp.any(filtered),
            lambda: draw_filtered(scaled, scores, possible, filters, vocabulary, sampling),
            lambda: best(scores),
        )
        return drawn

    chosen: jax.Array = jax.lax.cond(jnp.any(draws), draw, lambda: best(logits))
    return jnp.where(possible, chosen, -1)
