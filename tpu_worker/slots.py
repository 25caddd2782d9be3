"""The worker's mirror of the slots: turns the delta of a SchedulerOutput into a complete StepPlan.

The scheduler owns the batch. The mirror believes every message, checks that both sides agree on the size of the decode set, and
holds no decision of its own.
"""

from typing import TypeAlias

import numpy as np

from protocol.codec import BoolArray, Int32Array, unpack_int32
from protocol.errors import ProtocolError
from protocol.messages import NewRequest, SchedulerOutput
from protocol.params import Pooling
from tpu_worker.device import Admission, Extension, PooledRow, ScoredRow, StepPlan
from tpu_worker.needs import LOGPROBS, needs

_EMPTY = np.empty(0, np.int32)

_SamplerPart: TypeAlias = tuple[int, Int32Array | None, Int32Array | None, int]  # needs … masked_needs of a StepPlan
_NOTHING: _SamplerPart = (0, None, None, 0)


class Slots:
    """Positions, needs and the standing decode set."""

    def __init__(self, max_num_seqs: int, num_groups: int = 1) -> None:
        """`num_groups`: of the KV cache, each with a block table for every slot."""
        self._position = np.zeros(max_num_seqs, np.int32)  # next position to compute, by slot
        self._known = np.zeros(max_num_seqs, np.int32)  # tokens known at admission: where prefill ends
        self._num_blocks = np.zeros((num_groups, max_num_seqs), np.int32)
        self._needs = np.zeros(max_num_seqs, np.int32)  # of the sampler
        self._num_logprobs = np.full(max_num_seqs, -1, np.int32)
        self._constrained = np.zeros(max_num_seqs, bool)  # slots whose tokens wait for masks
        self._demanding: set[int] = set()  # slots with needs or masks: mostly there are none, and then nobody need look
        self._decoding = _EMPTY  # slots, in the order of their rows
        self._scoring: dict[int, tuple[int, int]] = {}  # slot -> where the scores of its prompt end, and how many candidates
        self._pooling: dict[int, Pooling] = {}  # slot -> how the states of its prompt are pooled
        self._ones, self._all = np.ones(max_num_seqs, np.int32), np.ones(max_num_seqs, bool)  # counts and samples of decode rows

    def apply(self, output: SchedulerOutput) -> StepPlan:
        """The plan of this step. Raises ProtocolError when scheduler and worker disagree about the batch."""
        if output.released_i32 or output.leaves_i32:
            released = unpack_int32(output.released_i32)
            if self._demanding:
                self._demanding.difference_update(released.tolist())
            gone = np.concatenate([released, unpack_int32(output.leaves_i32)])
            self._decoding = self._decoding[~np.isin(self._decoding, gone)]
        admissions = tuple(self._admit(new) for new in output.new)
        block_slots, block_ids, block_indices, block_groups = _EMPTY, _EMPTY, _EMPTY, None
        if output.block_slots_i32:
            block_slots, block_ids = unpack_int32(output.block_slots_i32), unpack_int32(output.block_ids_i32)
            if output.block_groups_i32:
                block_groups = unpack_int32(output.block_groups_i32)
            block_indices = self._append_blocks(block_slots, block_groups)
        if output.joins_i32:
            self._decoding = np.concatenate([self._decoding, unpack_int32(output.joins_i32)])
        slots = self._decoding
        num_decodes = len(slots)
        if num_decodes != output.num_decodes:
            raise ProtocolError(f"step {output.step_id} decodes {output.num_decodes} slots, but {num_decodes} are here")
        extensions: tuple[Extension, ...] = ()
        pooled: tuple[PooledRow, ...] = ()
        if output.prefill_slots_i32:
            slots = np.concatenate([slots, unpack_int32(output.prefill_slots_i32)])
            counts = np.ones(len(slots), np.int32)
            counts[num_decodes:] = unpack_int32(output.prefill_counts_i32)
            starts = self._position[slots]
            if output.extended_i32:
                extensions = self._extend(output, dict(zip(slots.tolist(), counts.tolist(), strict=True)))
            self._position[slots] += counts
            samples = self._position[slots] >= self._known[slots]
            scored = self._scored_rows(slots, starts, counts, num_decodes) if self._scoring else ()
            pooled = self._pooled_rows(slots, samples, num_decodes) if self._pooling else ()
        else:  # the common step, and the shortest way
            counts, samples, scored = self._ones[:num_decodes], self._all[:num_decodes], ()
            starts = self._position[slots]
            self._position[slots] += 1
        sampler = self._look_up(slots[samples]) if self._demanding else _NOTHING
        return StepPlan(
            output.step_id,
            admissions,
            block_slots,
            block_indices,
            block_ids,
            slots,
            starts,
            counts,
            samples,
            num_decodes,
            *sampler,
            extensions,
            scored,
            pooled,
            block_groups,
        )

    def _admit(self, new: NewRequest) -> Admission:
        token_ids, block_ids = unpack_int32(new.token_ids_i32), unpack_int32(new.block_ids_i32)
        counts = unpack_int32(new.block_counts_i32) if new.block_counts_i32 else np.array([len(block_ids)], np.int32)
        if len(counts) != len(self._num_blocks) or counts.sum() != len(block_ids):
            raise ProtocolError(f"slot {new.slot} comes with {len(counts)} block tables, where there are {len(self._num_blocks)}")
        self._position[new.slot] = new.num_computed
        self._known[new.slot] = len(token_ids)
        self._num_blocks[:, new.slot] = counts
        self._needs[new.slot] = wanted = needs(new.params)
        self._num_logprobs[new.slot] = new.params.logprobs
        self._constrained[new.slot] = masked = new.params.structured is not None
        (self._demanding.add if wanted or masked else self._demanding.discard)(new.slot)
        self._scoring.pop(new.slot, None)
        self._pooling.pop(new.slot, None)
        if new.scores and new.params.pooling:
            self._pooling[new.slot] = new.params.pooling
        elif new.scores:
            self._scoring[new.slot] = new.num_prompt_tokens, new.params.prompt_logprobs
        tables = tuple(np.split(block_ids, np.cumsum(counts)[:-1]))
        return Admission(new.slot, token_ids, tables, new.num_prompt_tokens, new.params)

    def _extend(self, output: SchedulerOutput, counts: dict[int, int]) -> tuple[Extension, ...]:
        """Known tokens for slots that decode, from the second position of each one's chunk on. counts: of the chunks, by slot."""
        extensions, tokens, taken = [], unpack_int32(output.extensions_i32), 0
        for slot in unpack_int32(output.extended_i32).tolist():
            start, count = int(self._position[slot]), counts.get(slot, 0)
            extensions.append(Extension(slot, start + 1, tokens[taken : taken + count - 1]))
            taken += count - 1
            self._known[slot] = start + count
        if taken != len(tokens):
            raise ProtocolError(f"step {output.step_id} brings {len(tokens)} known tokens for chunks of {taken}")
        return tuple(extensions)

    def _look_up(self, slots: Int32Array) -> _SamplerPart:
        """What slots that sample want."""
        wanted, masked = self._needs[slots], self._constrained[slots]
        together = int(np.bitwise_or.reduce(wanted))
        num_logprobs = self._num_logprobs[slots] if together & LOGPROBS else None
        if not masked.any():
            return together, num_logprobs, None, 0
        plain, constrained = int(np.bitwise_or.reduce(wanted[~masked])), int(np.bitwise_or.reduce(wanted[masked]))
        return plain, num_logprobs, np.flatnonzero(masked).astype(np.int32), constrained

    def _scored_rows(self, slots: Int32Array, starts: Int32Array, counts: Int32Array, num_decodes: int) -> tuple[ScoredRow, ...]:
        scored = []
        for row in range(num_decodes, len(slots)):
            end, candidates = self._scoring.get(int(slots[row]), (0, 0))
            start = int(starts[row]) + 1
            if (count := min(start + int(counts[row]), end) - start) > 0:
                scored.append(ScoredRow(row, start, count, candidates))
        return tuple(scored)

    def _pooled_rows(self, slots: Int32Array, samples: BoolArray, num_decodes: int) -> tuple[PooledRow, ...]:
        pooled = []
        for row in range(num_decodes, len(slots)):
            pooling = self._pooling.get(int(slots[row]))
            if pooling == "mean" or (pooling == "last" and samples[row]):
                pooled.append(PooledRow(row, pooling))
        return tuple(pooled)

    def _append_blocks(self, slots: Int32Array, groups: Int32Array | None) -> Int32Array:
        """Where in their tables blocks go that are appended."""
        counts, tables = self._num_blocks.reshape(-1), slots if groups is None else groups * self._num_blocks.shape[1] + slots
        if len(np.unique(tables)) == len(tables):
            indices: Int32Array = counts[tables]
            counts[tables] += 1
            return indices
        indices = np.empty(len(tables), np.int32)
        for i, table in enumerate(tables):
            indices[i] = counts[table]
            counts[table] += 1
        return indices
