"""Logits as a request's penalties and min_tokens change them, with vLLM's formulas, on the device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tpu_worker.contexts import Contexts
from tpu_worker.mesh.vocabulary import Vocabulary

_CHUNK = 256  # positions counted at once


class Penalties(NamedTuple):
    """What R rows ask for, each [R] but the last."""

    num_prompt: jax.Array  # int32 tokens, which the last two penalties do not count
    repetition: jax.Array  # float32, as the next two
    presence: jax.Array
    frequency: jax.Array
    min_length: jax.Array  # int32 tokens, prompt included, below which stop ids are not drawn
    stop_ids: jax.Array  # [R, N] int32, padded with -1


def penalise(logits: jax.Array, penalties: Penalties, contexts: Contexts, vocabulary: Vocabulary) -> jax.Array:
    """logits [R, width] with the penalties, then -inf for the stop ids that min_tokens forbids."""
    seen, counts = _count(contexts, penalties.num_prompt, vocabulary)
    repetition = jnp.where(seen, penalties.repetition[:, None], 1.0)
    logits = jnp.where(logits > 0, logits / repetition, logits * repetition)
    logits = logits - penalties.frequency[:, None] * counts - penalties.presence[:, None] * (counts > 0)
    logits = jnp.minimum(logits, np.finfo(np.float32).max)  # a penalty below 1 may bring a large one beyond it
    stop_ids = penalties.stop_ids
    forbidden = (contexts.lengths < penalties.min_length)[:, None] & (stop_ids >= 0)
    places = vocabulary.places(jnp.where(forbidden, stop_ids, vocabulary.size))
    return logits.at[jnp.arange(len(logits))[:, None], places].set(-jnp.inf, mode="drop")


def _count(contexts: Contexts, num_prompt: jax.Array, vocabulary: Vocabulary) -> tuple[jax.Array, jax.Array]:
    """Whether each token occurs in each row's context [R, width] bool, and how often in its output alone [R, width] float32."""
    num_rows, size = len(contexts.slots), min(_CHUNK, contexts.history.shape[1])
    row = jnp.arange(num_rows)[:, None]

    def count_chunk(index: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        seen, counts = carry
        start = jnp.minimum(index * size, contexts.history.shape[1] - size)  # the last chunk begins within the one before
        positions = start + jnp.arange(size)
        known = (positions >= index * size) & (positions < contexts.lengths[:, None])
        places = jnp.where(known, vocabulary.places(contexts.chunk(start, size)), vocabulary.width)  # outside: dropped
        output = jnp.where(positions >= num_prompt[:, None], places, vocabulary.width)
        return seen.at[row, places].set(True, mode="drop"), counts.at[row, output].add(1.0, mode="drop")

    chunks = (jnp.max(contexts.lengths) + size - 1) // size
    start = (jnp.zeros((num_rows, vocabulary.width), bool), jnp.zeros((num_rows, vocabulary.width)))
    counted: tuple[jax.Array, jax.Array] = jax.lax.fori_loop(0, chunks, count_chunk, start)
    return counted
