"""Log-probabilities of the tokens of prompts, on the device: a few rows of logits at a time, however long the prompts are."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from protocol.codec import Int32Array, pack_float32, pack_int32
from protocol.messages import PromptScores
from protocol.params import MAX_LOGPROBS
from tpu_worker.device import StepPlan
from tpu_worker.inputs import RowInputs
from tpu_worker.logprobs import logprobs_of
from tpu_worker.mesh.vocabulary import Vocabulary
from tpu_worker.platforms.metadata import AttentionMetadata

_MOST_AT_ONCE = 64  # rows of logits: enough for a matrix product to be efficient, 40 MB at a vocabulary of 150,000
_MOST_UNROLLED = 8  # times so many: what a loop is given TPU 7x may keep otherwise, and it would copy the table of embeddings
_FEWEST_AT_ONCE = 16  # where steps have fewer rows


class Scores(NamedTuple):
    """Of the tokens that a step scores, row by row of the step; then padding."""

    logprobs: jax.Array  # [T, 1 + MAX_LOGPROBS] float32: of the token, then of the most likely ones, in falling order
    ranks: jax.Array  # [T, 1 + MAX_LOGPROBS] int32: rank of the token from 1, then the ids of the most likely ones


def pack_scored(plan: StepPlan, num_rows: int) -> Int32Array:
    """How many tokens each row scores, [num_rows] int32: they are those behind its first positions."""
    counts = np.zeros(num_rows, np.int32)
    for scored in plan.scored:
        counts[scored.row] = scored.count
    return counts


def score(
    logits_of: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    rows: RowInputs,
    meta: AttentionMetadata,
    history: jax.Array,
    counts: jax.Array,
    vocabulary: Vocabulary,
) -> Scores:
    """Scores the tokens that `pack_scored`'s counts [R] name.

    logits_of (x [C, hidden], num_rows []) -> [C, width] float32, those of the vocabulary's part; x [T, hidden], what the step's
    tokens are behind the last layer; history [S, L] int32, which holds the tokens that are predicted.
    """
    num_tokens, at_once = len(x), max(_FEWEST_AT_ONCE, min(_MOST_AT_ONCE, len(counts)))
    offsets = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(counts, dtype=jnp.int32)])
    row, positions, real = replace(meta, counts=counts, offsets=offsets).locate(num_tokens)
    places = jnp.where(real, meta.offsets[row] + positions - rows.starts[row], 0)
    targets = jnp.where(real, history.at[rows.slots[row], positions + 1].get(mode="clip"), 0)
    padding = (0, -num_tokens % at_once)
    places, targets = jnp.pad(places, padding), jnp.pad(targets, padding)

    def score_some(index: jax.Array, scores: Scores) -> Scores:
        def some(array: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(array, index * at_once, at_once)

        logits = logits_of(x[some(places)], jnp.minimum(offsets[-1] - index * at_once, at_once))
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=index * at_once, axis=0)
        found = logprobs_of(logits, some(targets), vocabulary)
        return Scores(*(put(whole, part) for whole, part in zip(scores, found, strict=True)))

    width = (len(places), 1 + MAX_LOGPROBS)
    empty = Scores(jnp.zeros(width, jnp.float32), jnp.zeros(width, jnp.int32))
    if len(places) // at_once > _MOST_UNROLLED:
        return jax.lax.fori_loop(0, (offsets[-1] + at_once - 1) // at_once, score_some, empty)  # type: ignore[no-any-return]
    scores = empty
    for index in range(len(places) // at_once):
        some_are_left = index * at_once < offsets[-1]
        scores = jax.lax.cond(some_are_left, functools.partial(score_some, jnp.int32(index)), lambda scores: scores, scores)
    return scores


def unpack_scores(plan: StepPlan, scores: Scores) -> dict[int, PromptScores]:
    """What a step scored, by its rows. Waits for the step."""
    logprobs, ranks = np.asarray(scores.logprobs), np.asarray(scores.ranks)
    found, begin = {}, 0
    for scored in plan.scored:
        part = slice(begin, begin + scored.count), slice(0, 1 + scored.candidates)
        found[scored.row] = PromptScores(scored.start, pack_float32(logprobs[part]), pack_int32(ranks[part]))
        begin += scored.count
    return found
