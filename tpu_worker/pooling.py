"""Embeddings of prompts, on the device: states behind the last norm, of the last token or their mean over all tokens.

A mean is added up token by token, in their order, in an accumulator of its slot: so it does not depend, to the bit, on the chunks
that the prompt came in, nor on what ran beside it.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from protocol.codec import Int32Array, pack_float32
from protocol.messages import PromptScores
from tpu_worker.device import StepPlan
from tpu_worker.inputs import RowInputs
from tpu_worker.platforms.metadata import AttentionMetadata

_KINDS = {"last": 1, "mean": 2}
_AT_ONCE = 8  # embeddings that are fetched together: few are due in a step, and a step has room for many

Embeddings: TypeAlias = tuple[jax.Array, ...]  # [_AT_ONCE, hidden] float32 each: those that are due, in the order of the rows


def make_sums(num_slots: int, hidden_size: int) -> jax.Array:
    """The accumulators, [S + 1, hidden] float32: the last one takes what is no slot's."""
    return jnp.zeros((num_slots + 1, hidden_size), jnp.float32)


def count_embeddings(num_rows: int) -> int:
    """How many arrays `pool` yields for a step of so many rows."""
    return -(-num_rows // _AT_ONCE)


def pack_pooled(plan: StepPlan, num_rows: int) -> Int32Array:
    """How each row is pooled, [num_rows] int32: 0: not at all."""
    kinds = np.zeros(num_rows, np.int32)
    for pooled in plan.pooled:
        kinds[pooled.row] = _KINDS[pooled.pooling]
    return kinds


def pool(
    states_of: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    rows: RowInputs,
    meta: AttentionMetadata,
    sums: jax.Array,
    kinds: jax.Array,
) -> tuple[jax.Array, Embeddings]:
    """(sums, embeddings) behind a step of T tokens and R rows.

    states_of: x [N, hidden] -> [N, hidden] float32; x [T, hidden], what the step's tokens are behind the last layer;
    sums [S + 1, hidden], updated and not to be used again; kinds [R], `pack_pooled`'s.
    """
    num_tokens, nobody = len(x), sums.shape[0] - 1
    means = kinds == _KINDS["mean"]
    sums = sums.at[jnp.where(means & (rows.starts == 0), rows.slots, nobody)].set(0.0)
    row, _, real = meta.locate(num_tokens)
    owners = jnp.where(real & means[row], rows.slots[row], nobody)

    def add_all() -> jax.Array:
        states = states_of(x)

        def add(token: jax.Array, sums: jax.Array) -> jax.Array:
            owner = owners[token]
            added = jax.lax.dynamic_index_in_dim(sums, owner) + jax.lax.dynamic_index_in_dim(states, token)
            after: jax.Array = jax.lax.dynamic_update_index_in_dim(sums, added, owner, 0)
            return after

        added_up: jax.Array = jax.lax.fori_loop(0, meta.offsets[-1], add, sums)
        return added_up

    sums = jax.lax.cond(jnp.any(means), add_all, lambda: sums)
    mean: jax.Array = sums.at[rows.slots].get(mode="clip") / jnp.maximum(rows.ends, 1)[:, None]
    last = states_of(x[jnp.maximum(meta.offsets[1:] - 1, 0)])
    due = (kinds != 0) & (rows.samples != 0)
    first = jnp.argsort(jnp.where(due, 0, 1), stable=True)
    pooled = jnp.where(means[:, None], mean, last)[first]
    pooled = jnp.pad(pooled, ((0, -len(pooled) % _AT_ONCE), (0, 0)))
    return sums, tuple(jnp.split(pooled, len(pooled) // _AT_ONCE))


def due_embeddings(plan: StepPlan, embeddings: Embeddings) -> Embeddings:
    """Those arrays that hold embeddings of this step: the others need not be fetched."""
    return embeddings[: -(-len(_due_rows(plan)) // _AT_ONCE)]


def unpack_pooled(plan: StepPlan, embeddings: Embeddings) -> dict[int, PromptScores]:
    """What `due_embeddings` holds, by rows of the step. Waits for the step."""
    fetched = [np.asarray(some) for some in embeddings]
    return {
        row: PromptScores(1, b"", b"", pack_float32(fetched[index // _AT_ONCE][index % _AT_ONCE]))
        for index, row in enumerate(_due_rows(plan))
    }


def _due_rows(plan: StepPlan) -> list[int]:
    return [pooled.row for pooled in plan.pooled if plan.samples[pooled.row]]
