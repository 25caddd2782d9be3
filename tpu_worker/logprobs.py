"""Log-probabilities of tokens, and the most likely ones, on the device."""

import jax
import jax.numpy as jnp

from protocol.params import MAX_LOGPROBS
from tpu_worker.mesh.vocabulary import Vocabulary


def logprobs_of(logits: jax.Array, token_ids: jax.Array, vocabulary: Vocabulary) -> tuple[jax.Array, jax.Array]:
    """Of the model itself, before temperature, rules, penalties and filters: logits [R, width], token_ids [R] ->
    `Sampled.logprobs` and `ranks`."""
    top = vocabulary.maximum(jnp.max(logits, axis=-1))
    log_total = top + jnp.log(vocabulary.total(jnp.sum(jnp.exp(logits - top[:, None]), axis=-1)))
    places = vocabulary.places(jnp.maximum(token_ids, 0))[:, None]
    chosen = vocabulary.maximum(jnp.take_along_axis(logits, places, axis=-1, mode="fill", fill_value=-jnp.inf))
    rank = vocabulary.total(jnp.sum(vocabulary.fill(logits >= chosen, False), axis=-1, dtype=jnp.int32))
    best, ids = vocabulary.most(logits, MAX_LOGPROBS)
    return jnp.concatenate([chosen, best], axis=-1) - log_total[:, None], jnp.concatenate([rank[:, None], ids], axis=-1)
