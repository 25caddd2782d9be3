"""Chooses the next token of each row, on the device.

Every row is computed by itself: neither its neighbours, nor what they ask for, nor the width of the batch change a bit of what it
gets. What is done for a row follows from its own needs; those of all rows together decide only which code runs. Random numbers
derive from (seed of the request, position of the new token) alone. The filters find their thresholds by bisection over the bits of
the logits, since sorting a vocabulary costs many times more.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from protocol.codec import Int32Array
from protocol.params import MAX_LOGPROBS, MAX_REPETITION_PENALTY, MAX_STOP_TOKEN_IDS, MIN_REPETITION_PENALTY, EngineParams
from tpu_worker.needs import DRAWS, EDITS, FILTERS, LOGPROBS, RULES, needs
from tpu_worker.rules import SlotRules, apply_rules

_STOP_IDS = MAX_STOP_TOKEN_IDS + 8  # a request's own, and the model's ends of sequence
_INTS, _FLOATS = 6, 6
ROW_WIDTH = _INTS + _FLOATS + _STOP_IDS  # int32 words of a request's sampling parameters on the device
_HISTORY_CHUNK = 256  # positions counted at once for penalties


class Rows(NamedTuple):
    """Sampling parameters of R rows, taken out of their packed form; each [R], stop_ids [R, _STOP_IDS]."""

    needs: jax.Array  # bits, as above
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
    logits: jax.Array, likeliest: jax.Array, packed: jax.Array, history: jax.Array, lengths: jax.Array, rules: SlotRules
) -> Sampled:
    """Draws the token at position lengths[r] of each row.

    logits [R, V] float32; likeliest [R] int32, what `greedy` makes of them; packed [R, ROW_WIDTH] int32, zeros for a row that needs
    nothing; history [R, L] int32, of which the first lengths[r] tokens are row r's context; lengths [R] int32.
    """
    rows = _unpack(packed)
    chooses = _have(rows, DRAWS | EDITS | RULES)
    token_ids = jax.lax.cond(
        jnp.any(chooses),
        lambda: jnp.where(chooses & (likeliest >= 0), _choose(logits, rows, history, lengths, rules), likeliest),
        lambda: likeliest,
    )
    wanted = _have(rows, LOGPROBS)
    nothing = jnp.zeros((logits.shape[0], 1 + MAX_LOGPROBS))
    logprobs, ranks = jax.lax.cond(
        jnp.any(wanted),
        lambda: logprobs_of(logits, token_ids),
        lambda: (nothing, nothing.astype(jnp.int32)),
    )
    return Sampled(token_ids, jnp.where(wanted[:, None], logprobs, 0.0), jnp.where(wanted[:, None], ranks, 0))


def greedy(logits: jax.Array) -> jax.Array:
    """The most likely token of each row [R] int32, the first of equals; -1 where logits [R, V] have NaN or +inf, or only -inf."""
    top = jnp.max(logits, axis=-1)
    finite = jnp.isfinite(top) & jnp.all(logits < jnp.inf, axis=-1)  # XLA's maximum may lose a NaN on the CPU
    return jnp.where(finite, _first_index(logits, top), -1)


def _have(rows: Rows, bits: int) -> jax.Array:
    """Which rows [R] need any of the bits."""
    return rows.needs & bits != 0


def _unpack(packed: jax.Array) -> Rows:
    ints, floats, stop_ids = jnp.split(packed, (_INTS, _INTS + _FLOATS), axis=1)
    needs, num_prompt, min_length, top_k = ints[:, :4].T
    seeds = jax.lax.bitcast_convert_type(ints[:, 4:], jnp.uint32)
    temperature, top_p, min_p, repetition, presence, frequency = jax.lax.bitcast_convert_type(floats, jnp.float32).T
    return Rows(needs, num_prompt, min_length, top_k, seeds, temperature, top_p, min_p, repetition, presence, frequency, stop_ids)


def _first_index(values: jax.Array, top: jax.Array) -> jax.Array:
    """Index [R] of the first value [R, V] that equals top [R]. Two plain reductions vectorise on the CPU, an argmax does not."""
    indices = jnp.arange(values.shape[-1], dtype=jnp.int32)
    return jnp.min(jnp.where(values == top[:, None], indices, values.shape[-1] - 1), axis=-1)


def _choose(logits: jax.Array, rows: Rows, history: jax.Array, lengths: jax.Array, rules: SlotRules) -> jax.Array:
    """The token [R] of rows that draw or whose logits are edited; -1 where nothing is left to choose."""
    ruled, edits = _have(rows, RULES), _have(rows, EDITS)

    def follow_rules() -> jax.Array:
        return jnp.where(ruled[:, None], apply_rules(logits, rules, rows.num_prompt, history, lengths), logits)

    logits = jax.lax.cond(jnp.any(ruled), follow_rules, lambda: logits)
    logits = jax.lax.cond(
        jnp.any(edits),
        lambda: _where_possible(edits, _edit(logits, rows, history, jnp.where(edits, lengths, 0)), logits),
        lambda: logits,
    )
    top = jnp.max(logits, axis=-1)
    draws = _have(rows, DRAWS)
    scores = jax.lax.cond(
        jnp.any(draws),
        lambda: jnp.where(draws[:, None], _perturb(logits, top, rows, lengths), logits),
        lambda: logits,
    )
    return jnp.where(jnp.isfinite(top), _first_index(scores, jnp.max(scores, axis=-1)), -1)


def _perturb(logits: jax.Array, top: jax.Array, rows: Rows, lengths: jax.Array) -> jax.Array:
    """Scores [R, V] of rows that draw, the largest of which is a draw from the softmax of their logits, after temperature and
    filters: Gumbel's trick."""
    draws, filters = _have(rows, DRAWS), _have(rows, FILTERS)
    # Below zero, so that no temperature makes it overflow.
    scaled = (logits - top[:, None]) / jnp.where(draws, rows.temperature, 1.0)[:, None]
    scaled = jax.lax.cond(jnp.any(filters), lambda: jnp.where(filters[:, None], _filter(scaled, rows), scaled), lambda: scaled)
    noise: jax.Array = jax.vmap(lambda seed, length: _gumbel(seed, length, logits.shape[-1]))(rows.seeds, lengths)
    perturbed: jax.Array = scaled + noise
    return perturbed


def _where_possible(edits: jax.Array, edited: jax.Array, logits: jax.Array) -> jax.Array:
    """The edited logits [R, V] of rows that want this. Not where they leave nothing: if a grammar allows an end and no more,
    min_tokens cannot be had."""
    return jnp.where((edits & (jnp.max(edited, axis=-1) > -jnp.inf))[:, None], edited, logits)


def _gumbel(seed: jax.Array, length: jax.Array, size: int) -> jax.Array:
    key = jax.random.fold_in(jax.random.wrap_key_data(seed, impl="threefry2x32"), length)
    return jax.random.gumbel(key, (size,), jnp.float32)


def _edit(logits: jax.Array, rows: Rows, history: jax.Array, lengths: jax.Array) -> jax.Array:
    """Penalties with vLLM's formulas, then -inf for the stop ids that min_tokens forbids."""
    seen, counts = _count(history, rows.num_prompt, lengths, logits.shape[-1])
    repetition = jnp.where(seen, rows.repetition[:, None], 1.0)
    logits = jnp.where(logits > 0, logits / repetition, logits * repetition)
    logits = logits - rows.frequency[:, None] * counts - rows.presence[:, None] * (counts > 0)
    logits = jnp.minimum(logits, np.finfo(np.float32).max)  # a penalty below 1 may bring a large one beyond it
    forbidden = jnp.where((lengths < rows.min_length)[:, None] & (rows.stop_ids >= 0), rows.stop_ids, logits.shape[-1])
    return logits.at[jnp.arange(logits.shape[0])[:, None], forbidden].set(-jnp.inf, mode="drop")


def _count(history: jax.Array, num_prompt: jax.Array, lengths: jax.Array, vocab_size: int) -> tuple[jax.Array, jax.Array]:
    """Whether each token occurs in each row's context [R, V] bool, and how often in its output alone [R, V] float32."""
    num_rows, width = history.shape
    row = jnp.arange(num_rows)[:, None]
    history = jnp.pad(history, ((0, 0), (0, -width % _HISTORY_CHUNK)))

    def count_chunk(index: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        seen, counts = carry
        positions = index * _HISTORY_CHUNK + jnp.arange(_HISTORY_CHUNK)
        tokens = jax.lax.dynamic_slice_in_dim(history, index * _HISTORY_CHUNK, _HISTORY_CHUNK, axis=1)
        known = jnp.where(positions < lengths[:, None], tokens, vocab_size)  # outside: dropped
        output = jnp.where(positions >= num_prompt[:, None], known, vocab_size)
        return seen.at[row, known].set(True, mode="drop"), counts.at[row, output].add(1.0, mode="drop")

    chunks = (jnp.max(lengths) + _HISTORY_CHUNK - 1) // _HISTORY_CHUNK
    start = (jnp.zeros((num_rows, vocab_size), bool), jnp.zeros((num_rows, vocab_size)))
    counted: tuple[jax.Array, jax.Array] = jax.lax.fori_loop(0, chunks, count_chunk, start)
    return counted


def _filter(logits: jax.Array, rows: Rows) -> jax.Array:
    """-inf for what min-p, top-k and top-p leave out, in this order. logits [R, V] are those after temperature, the largest 0."""
    weights = jnp.exp(logits)
    keys = jnp.where(weights >= rows.min_p[:, None], _sortable(logits), jnp.int32(-(2**31)))
    ones = jnp.ones_like(weights)
    k = jnp.where(rows.top_k > 0, rows.top_k, logits.shape[-1]).astype(jnp.float32)
    keys = jnp.where(keys >= _threshold(keys, ones, k)[:, None], keys, jnp.int32(-(2**31)))
    weights = jnp.where(keys > -(2**31), weights, 0.0)
    share = jnp.where(rows.top_p < 1, rows.top_p * jnp.sum(weights, axis=-1), jnp.inf)
    return jnp.where((keys >= _threshold(keys, weights, share)[:, None]) & (keys > -(2**31)), logits, -jnp.inf)


def _sortable(values: jax.Array) -> jax.Array:
    """int32 that compare as the float32 values do, all above the least int32."""
    bits = jax.lax.bitcast_convert_type(values, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _threshold(keys: jax.Array, weights: jax.Array, target: jax.Array) -> jax.Array:
    """The largest t [R] int32 for which the weights [R, V] of keys >= t [R, V] still sum to target [R]; the least int32 if none.

    A weight of a vocabulary's size counts exactly in float32 up to 2**24 entries.
    """

    def middle(low: jax.Array, high: jax.Array) -> jax.Array:
        return (low >> 1) + (high >> 1) + (low & high & 1)  # without overflow

    def halve(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = state
        at = middle(low, high)
        enough = jnp.sum(jnp.where(keys >= at[:, None], weights, 0.0), axis=-1) >= target
        return jnp.where(enough, at, low), jnp.where(enough, high, at)

    # low holds the answer from below, high is always too much; they end one apart.
    low = jnp.full(target.shape, -(2**31), jnp.int32)
    high = jnp.max(keys, axis=-1) + 1
    low, _ = jax.lax.while_loop(lambda state: jnp.any(middle(*state) > state[0]), halve, (low, high))
    return low


def logprobs_of(logits: jax.Array, token_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of the model itself, before temperature, rules, penalties and filters: logits [R, V], token_ids [R] ->
    `Sampled.logprobs` and `ranks`."""
    top = jnp.max(logits, axis=-1)
    log_total = top + jnp.log(jnp.sum(jnp.exp(logits - top[:, None]), axis=-1))
    chosen = jnp.take_along_axis(logits, jnp.maximum(token_ids, 0)[:, None], axis=-1)
    rank = jnp.sum(logits >= chosen, axis=-1, dtype=jnp.int32)
    best, ids = jax.lax.top_k(logits, MAX_LOGPROBS)
    return jnp.concatenate([chosen, best], axis=-1) - log_total[:, None], jnp.concatenate([rank[:, None], ids], axis=-1)
