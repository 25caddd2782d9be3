"""What a step and an admission send to the device: one packed array of int32 each."""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from protocol.codec import Int32Array
from tpu_worker.buckets import EXTENSION_WIDTH, GROWTH_WIDTH
from tpu_worker.device import Admission, StepPlan
from tpu_worker.lanes import fill_lanes
from tpu_worker.platforms.metadata import AttentionMetadata
from tpu_worker.sampler import ROW_WIDTH, pack_params
from tpu_worker.stacking import Layers


class SlotState(NamedTuple):
    """What the device knows of each of S slots."""

    history: jax.Array  # [S, L] int32: tokens by position, with room for max_model_len + 1 at least
    tables: jax.Array  # [KV cache groups, S, blocks per sequence] int32: slots side by side, as a TPU's vectors have them
    params: jax.Array  # [S, ROW_WIDTH] int32


class RowInputs(NamedTuple):
    """The R rows of a step, unpacked. Padding rows name slot S, which is outside of every array, and have a count of 0."""

    slots: jax.Array  # [R] int32
    starts: jax.Array  # [R] int32
    counts: jax.Array  # [R] int32
    samples: jax.Array  # [R] int32, 0 or 1

    @property
    def num_rows(self) -> jax.Array:
        """How many [] rows there are before the padding."""
        return jnp.sum(self.counts > 0, dtype=jnp.int32)

    @property
    def ends(self) -> jax.Array:
        """Position [R] of the token that each row samples."""
        return self.starts + self.counts


class StepInputs(NamedTuple):
    """What a model computes in a step of T tokens and R rows."""

    token_ids: jax.Array  # [T] int32
    prepared: Layers  # for each layer a `Prepared` of the platform's attention
    num_tokens: jax.Array  # [] int32: how many there are before the padding
    sampled: jax.Array  # [R] int32: the tokens that are wanted behind the last layer …
    num_sampled: jax.Array  # [] int32: … and how many of these are before the padding


def make_slots(num_slots: int, max_model_len: int, block_size: int, num_groups: int) -> SlotState:
    """All zeros."""
    tables = jnp.zeros((num_groups, num_slots, -(-max_model_len // block_size)), jnp.int32)
    history = jnp.zeros((num_slots, fill_lanes(max_model_len + 1)), jnp.int32)
    return SlotState(history, tables, jnp.zeros((num_slots, ROW_WIDTH), jnp.int32))


def step_width(num_rows: int, num_groups: int) -> int:
    """How many integers `pack_step` packs."""
    return (4 + 4 * num_groups) * num_rows


def pack_step(plan: StepPlan, num_rows: int, num_slots: int, num_groups: int = 1, *, masked: bool = False) -> Int32Array:
    """[step_width] int32, R = num_rows, G = num_groups: slots, starts, counts, samples, of R rows each; slot, group, index and id
    of up to G · R blocks that are appended.

    masked: `samples` says which rows sample with a mask; else, which without.
    """
    packed = np.zeros(step_width(num_rows, num_groups), np.int32)
    fields, appended = packed[: 4 * num_rows].reshape(4, num_rows), packed[4 * num_rows :].reshape(4, -1)
    fields[0], appended[0] = num_slots, num_slots
    for row, values in enumerate((plan.slots, plan.starts, plan.counts, plan.samples)):
        fields[row, : len(values)] = values
    if plan.masked_rows is not None:
        fields[3] = 0
        fields[3, plan.rows_to_sample(masked=masked)] = 1
    if len(plan.block_slots):
        appended[:, : len(plan.block_slots)] = _appended(plan)
    return packed


def pack_growth(plan: StepPlan, num_slots: int) -> list[Int32Array]:
    """Arrays [4, GROWTH_WIDTH] int32: slot, group, index and id of the blocks that are appended; then, a slot that is none."""
    width = -(-len(plan.block_slots) // GROWTH_WIDTH) * GROWTH_WIDTH
    packed = np.zeros((4, width), np.int32)
    packed[0] = num_slots
    packed[:, : len(plan.block_slots)] = _appended(plan)
    return [np.ascontiguousarray(part) for part in np.split(packed, width // GROWTH_WIDTH, axis=1)]


def _appended(plan: StepPlan) -> Int32Array:
    groups = np.zeros_like(plan.block_slots) if plan.block_groups is None else plan.block_groups
    return np.stack([plan.block_slots, groups, plan.block_indices, plan.block_ids])


def unpack_rows(state: SlotState, packed: jax.Array) -> RowInputs:
    """The rows in what `pack_step` packed."""
    return RowInputs(*packed.reshape(4 + 4 * state.tables.shape[0], -1)[:4])


def grow_tables(state: SlotState, appended: jax.Array) -> SlotState:
    """Appends blocks: of what `pack_step` packed what is behind the rows, or `pack_growth`'s arrays."""
    slots, groups, indices, blocks = appended.reshape(4, -1)
    return state._replace(tables=state.tables.at[groups, slots, indices].set(blocks, mode="drop"))


def gather_tokens(state: SlotState, rows: RowInputs, num_tokens: int) -> tuple[jax.Array, tuple[AttentionMetadata, ...]]:
    """The step's token ids [T] int32, out of the history, and where they belong in each KV cache group."""
    offsets = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(rows.counts, dtype=jnp.int32)])
    tables = state.tables.at[:, rows.slots].get(mode="clip")
    meta = AttentionMetadata(tables[0], rows.starts, rows.counts, offsets)
    row, positions, real = meta.locate(num_tokens)
    token_ids = jnp.where(real, state.history.at[rows.slots[row], positions].get(mode="clip"), 0)
    return token_ids, tuple(replace(meta, block_tables=table) for table in tables)


def record_tokens(state: SlotState, rows: RowInputs, token_ids: jax.Array) -> SlotState:
    """Writes the tokens [R] of the rows that sample to the history; the next step reads them there."""
    slots = jnp.where(rows.samples != 0, rows.slots, state.history.shape[0])  # outside: dropped
    return state._replace(history=state.history.at[slots, rows.ends].set(jnp.maximum(token_ids, 0), mode="drop"))


def pack_masked(plan: StepPlan, num_rows: int, num_slots: int) -> Int32Array:
    """[3, R] int32, R = num_rows: index among the step's rows, slot, and position of the token that it samples, of each masked row.

    Behind them, an index and a slot that are outside of every array.
    """
    rows = plan.rows_to_sample(masked=True)
    packed = np.zeros((3, num_rows), np.int32)
    packed[0], packed[1] = num_rows, num_slots
    packed[:, : len(rows)] = rows, plan.slots[rows], plan.starts[rows] + plan.counts[rows]
    return packed


def record_masked(state: SlotState, packed: jax.Array, token_ids: jax.Array) -> SlotState:
    """Writes the tokens [R] of the rows that `pack_masked` packed to the history."""
    return state._replace(history=state.history.at[packed[1], packed[2]].set(jnp.maximum(token_ids, 0), mode="drop"))


def pack_extensions(plan: StepPlan, num_slots: int) -> list[Int32Array]:
    """Arrays [3, EXTENSION_WIDTH] int32: slots, positions and tokens to write to the history; behind them, a slot that is none."""
    slots = np.concatenate([np.full(len(known.token_ids), known.slot) for known in plan.extensions])
    positions = np.concatenate([known.position + np.arange(len(known.token_ids)) for known in plan.extensions])
    tokens = np.concatenate([known.token_ids for known in plan.extensions])
    width = -(-len(slots) // EXTENSION_WIDTH) * EXTENSION_WIDTH
    packed = np.zeros((3, width), np.int32)
    packed[0] = num_slots
    packed[:, : len(slots)] = slots, positions, tokens
    return [np.ascontiguousarray(part) for part in np.split(packed, width // EXTENSION_WIDTH, axis=1)]


def extend(state: SlotState, packed: jax.Array) -> SlotState:
    """Writes the known tokens in what `pack_extensions` packed to the history."""
    slots, positions, token_ids = packed
    return state._replace(history=state.history.at[slots, positions].set(token_ids, mode="drop"))


def admission_width(state: SlotState) -> int:
    """How many integers `pack_admission` packs."""
    return 1 + ROW_WIDTH + state.tables.shape[0] * state.tables.shape[2] + state.history.shape[1]


def pack_admission(admission: Admission, state: SlotState) -> Int32Array:
    """[1 + ROW_WIDTH + KV cache groups · blocks per sequence + width of a history] int32: slot, parameters, tables, history."""
    history_width = state.history.shape[1]
    packed = np.zeros(admission_width(state), np.int32)
    packed[0] = admission.slot
    packed[1 : 1 + ROW_WIDTH] = pack_params(admission.num_prompt_tokens, admission.params)
    tables, history = packed[1 + ROW_WIDTH : -history_width].reshape(state.tables.shape[0], -1), packed[-history_width:]
    for table, blocks in zip(tables, admission.block_tables, strict=True):
        table[: len(blocks)] = blocks
    history[: len(admission.token_ids)] = admission.token_ids
    return packed


def admit(state: SlotState, packed: jax.Array) -> SlotState:
    """Replaces everything that one slot holds."""
    slot, history_width = packed[0], state.history.shape[1]
    return SlotState(
        state.history.at[slot].set(packed[-history_width:]),
        state.tables.at[:, slot].set(packed[1 + ROW_WIDTH : -history_width].reshape(state.tables.shape[0], -1)),
        state.params.at[slot].set(packed[1 : 1 + ROW_WIDTH]),
    )
