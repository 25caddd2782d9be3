"""A device that takes the time of an accelerator and computes tokens that can be worked out by hand.

It has what a real one has, a block table per slot, a paged cache and a token history per slot, and its tokens depend on the
whole context as read through them. So a wrong block, position, slot or placeholder shows as a wrong token.

The token at position n of a request with seed s is a hash of (token 0, …, token n-1, n, s): see `simulated_token`. What a request
that rules tokens out or waits for masks gets instead, and log-probabilities: see `simulated_choice`.

With windows it is a hash of what each KV cache group sees of the context, in a table of its own.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.cache_groups import CacheGroups
from protocol.clock import now_ns
from protocol.codec import BoolArray, Float32Array, Int32Array, Int64Array, UInt32Array, UInt64Array, pack_float32
from protocol.config import EngineConfig
from protocol.errors import CapacityError
from protocol.messages import PromptScores, TopLogprobs
from protocol.params import Pooling
from tpu_worker.allocation import out_of_memory
from tpu_worker.device import Admission, Capacity, PooledRow, ReportProgress, ScoredRow, StepPlan, StepResult
from tpu_worker.simulated_choice import MOST_CHOICES, Choice, has_choice, pick_allowed, simulated_logprobs, simulated_scores
from tpu_worker.simulated_times import SimulatedChip, simulated_chip

_POISON = np.uint64(0x9E3779B97F4A7C15)  # sum of a block whose tail was overwritten: no context hashes to what it gives
_DEFAULT_BLOCKS = 16384
EMBEDDING_SIZE = 64


def simulated_token(
    context: Sequence[int], seed: int, vocab_size: int, allowed: Sequence[int] | None = None, windows: Sequence[int] = (0,)
) -> int:
    """The token that follows `context`, prompt and output so far, for a request with this seed.

    `allowed`: rising ids, the only ones that may come. `windows`: of the device's KV cache groups.
    """
    choices = vocab_size if allowed is None else min(len(allowed), MOST_CHOICES)
    weights = _weights(len(context) + 1)
    cells = (np.asarray(context, np.uint64) + np.uint64(1)) * weights[:-1]
    seen = np.array([cells[-window if window else 0 :].sum(dtype=np.uint64) for window in windows])
    context_sum = (_group_factors(len(windows)) * seen).sum(keepdims=True)
    drawn = int(_hashes(context_sum, weights[-1:], _mix(np.array([seed % 2**64], np.uint64)))[0]) % choices
    return drawn if allowed is None else allowed[drawn]


def simulated_embedding(prompt: Sequence[int], pooling: Pooling, windows: Sequence[int] = (0,)) -> Float32Array:
    """The embedding of a prompt, [EMBEDDING_SIZE]: of its last token or, for "mean", over all of them. `windows`: as above."""
    lengths = np.arange(1, len(prompt) + 1)
    cells = (np.asarray(prompt, np.uint64) + np.uint64(1)) * _weights(len(prompt))
    before = np.concatenate([np.zeros(1, np.uint64), np.cumsum(cells, dtype=np.uint64)])
    seen = [before[lengths] - (before[np.maximum(lengths - window, 0)] if window else np.uint64(0)) for window in windows]
    states = _states((_group_factors(len(windows))[:, None] * np.array(seen)).sum(axis=0, dtype=np.uint64))
    return _pooled(states[-1] if pooling == "last" else states.sum(0), 1 if pooling == "last" else len(prompt))


def _states(context_sums: UInt64Array) -> Int64Array:
    """What stands for the state of a token behind the last norm, [tokens, EMBEDDING_SIZE]: 31 bits with a sign, so that sums of
    them are exact."""
    hashes = _mix(context_sums[:, None] + _mix(np.arange(EMBEDDING_SIZE, dtype=np.uint64)))
    return (hashes >> np.uint64(32)).astype(np.int64) - (1 << 31)


def _pooled(total: Int64Array, count: int) -> Float32Array:
    pooled: Float32Array = (total / (count * 2.0**31)).astype(np.float32)
    return pooled


def _mix(values: UInt64Array) -> UInt64Array:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): every input bit changes every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _weights(count: int) -> UInt64Array:
    """A random odd weight for each position. What the cache holds of a token is (token + 1) × the weight of its position, and the
    sum of these is a hash of the context."""
    return _mix(np.arange(1, count + 1, dtype=np.uint64)) | np.uint64(1)


def _group_factors(num_groups: int) -> UInt64Array:
    """What the cells of each group are multiplied with, so that a block of one is no block of another."""
    return np.arange(1, 2 * num_groups, 2, dtype=np.uint64)


def _hashes(context_sums: UInt64Array, weights: UInt64Array, seed_hashes: UInt64Array) -> UInt64Array:
    """`weights`: of the new tokens' positions."""
    return _mix(context_sums ^ (seed_hashes + weights))


@dataclass(frozen=True, slots=True)
class SimulatedStep:
    """Handle of a step, or of the sampling of its masked rows: its plan, and when it begins and ends on the device."""

    plan: StepPlan
    started_ns: int
    finished_ns: int
    bits: UInt32Array | None = None  # of the masked rows, where these are sampled


class SimulatedDevice:
    """Implements `tpu_worker.device.Device`. Steps run strictly one after another, as on a device's stream."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        vocab_size: int,
        max_model_len: int,
        windows: tuple[int, ...] = (0,),
        chip: SimulatedChip | None = None,
    ) -> None:
        """`max_model_len` in tokens; `windows`: of each KV cache group, in tokens, 0: none. `chip`: None: by three numbers.

        Raises ConfigError, CapacityError.
        """
        self._chip = chip = chip or simulated_chip(config)
        self._block_size = block_size = chip.block_size
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._windows = windows
        self._factors = _group_factors(len(windows))
        blocks_per_sequence = CacheGroups(windows, block_size, config.max_num_batched_tokens).demand(max_model_len)
        bytes_per_block = chip.bytes_per_block
        if config.kv_cache_memory is None:
            self._num_blocks = max(_DEFAULT_BLOCKS, blocks_per_sequence) if chip.num_blocks is None else chip.num_blocks
        else:  # not many more than a batch could use: a simulated block is so small that the scheduler would count for minutes
            most = max(_DEFAULT_BLOCKS, blocks_per_sequence * config.max_num_seqs)
            self._num_blocks = min(config.kv_cache_memory // bytes_per_block, most)
        if self._num_blocks < blocks_per_sequence:
            where = chip.description if config.kv_cache_memory is None else f"--kv-cache-memory {config.kv_cache_memory}"
            raise CapacityError(
                f"{where} holds {self._num_blocks} simulated blocks, "
                f"a sequence of {max_model_len} tokens needs {blocks_per_sequence}: "
                f"use at least --kv-cache-memory {blocks_per_sequence * bytes_per_block}, or a lower --max-model-len"
            )
        slots = config.max_num_seqs
        with out_of_memory("making the simulated KV cache"):
            self._sums = np.zeros((self._num_blocks, block_size), np.uint64)  # [i, j]: sum of the cells 0 … j of block i
            self._tables = np.zeros((len(windows), slots, -(-max_model_len // block_size)), np.int32)
            self._history = np.zeros((slots, max_model_len + 1), np.int32)
            self._seed_hashes = np.zeros(slots, np.uint64)
            self._weights = _weights(max_model_len + 1)
        self._state_sums: dict[int, Int64Array] = {}  # by slot, of the means under way
        self._choices: dict[int, Choice] = {}  # by slot, of requests that may get another token than the drawn one
        self._free_at_ns = 0
        self._closed = threading.Event()

    def load(self, report: ReportProgress) -> Capacity:
        """There is nothing to load."""
        report("simulating", 1, 1)
        return Capacity(
            self._num_blocks,
            self._block_size,
            self._max_model_len,
            self._vocab_size,
            self._chip.description,
            scores_ready=True,
            embedding_size=EMBEDDING_SIZE,
            windows=self._windows,
        )

    def forward(self, plan: StepPlan) -> SimulatedStep:
        """The step begins when the one before it has ended, or now."""
        started = max(now_ns(), self._free_at_ns)
        self._free_at_ns = started + int(self._chip.times.step_us(plan) * 1e3)
        return SimulatedStep(plan, started, self._free_at_ns)

    def sample(self, handle: object, bits: UInt32Array) -> SimulatedStep:
        """A step that waits for masks keeps the next one from beginning. Its times are those of both parts, without the wait."""
        assert isinstance(handle, SimulatedStep)
        started, finished, micros = handle.started_ns, handle.finished_ns, self._chip.times.masked_us(handle.plan)
        if micros:
            waited = max(0, now_ns() - finished)
            started, finished = started + waited, finished + waited + int(micros * 1e3)
            self._free_at_ns = finished
        return SimulatedStep(handle.plan, started, finished, bits)

    def collect(self, handle: object) -> StepResult:
        """Works out the step's tokens while it "runs", then sleeps until its end. Steps are collected in their order."""
        assert isinstance(handle, SimulatedStep)
        plan, masked = handle.plan, handle.bits is not None
        drawn, token_ids = self._run(plan) if handle.bits is None else self._run_masked(plan, handle.bits)
        logprobs: dict[int, TopLogprobs] = {}
        if plan.num_logprobs is not None:
            counts = plan.num_logprobs[plan.answers(masked=masked)]
            for row in np.flatnonzero(counts >= 0).tolist():
                logprobs[row] = simulated_logprobs(int(drawn[row]), int(token_ids[row]), int(counts[row]), self._vocab_size)
        failed_rows = tuple(np.flatnonzero(token_ids < 0).tolist())
        while (left := handle.finished_ns - now_ns()) > 0 and not self._closed.wait(left * 1e-9):
            pass
        return StepResult(
            np.maximum(token_ids, 0),
            failed_rows,
            logprobs,
            handle.started_ns,
            handle.finished_ns,
            prompt_scores={} if masked else self.score(plan),
        )

    def prepare_scores(self, ready: Callable[[str], None]) -> None:
        """There is nothing to prepare."""
        ready("")

    def close(self) -> None:
        """Wakes a sleeping `collect`."""
        self._closed.set()

    def execute(self, plan: StepPlan) -> Int32Array:
        """The tokens of one step, for its sampling rows without a mask in their order, -1 where none is left; takes no simulated
        time."""
        return self._run(plan)[1]

    def score(self, plan: StepPlan) -> dict[int, PromptScores]:
        """The scores of prompts by the rows of a step, once `execute` has run it: against what a request with the seed 0 would
        draw, so that the prompt alone decides. And the embeddings that are due."""
        scores = {scored.row: self._score(int(plan.slots[scored.row]), scored) for scored in plan.scored}
        for pooled in plan.pooled:
            if (embedding := self._pool(plan, pooled)) is not None:
                scores[pooled.row] = PromptScores(1, b"", b"", pack_float32(embedding))
        return scores

    def execute_masked(self, plan: StepPlan, bits: UInt32Array) -> Int32Array:
        """The same for its rows with a mask, once `execute` has run it."""
        return self._run_masked(plan, bits)[1]

    def _run(self, plan: StepPlan) -> tuple[Int32Array, Int32Array]:
        """The tokens drawn, and those chosen."""
        for admission in plan.admissions:
            self._admit(admission)
        for known in plan.extensions:
            self._history[known.slot, known.position : known.position + len(known.token_ids)] = known.token_ids
        if len(plan.block_slots):
            groups = 0 if plan.block_groups is None else plan.block_groups
            self._tables[groups, plan.block_slots, plan.block_indices] = plan.block_ids
        decoding = plan.slots[: plan.num_decodes]
        self._write(decoding, plan.starts[: plan.num_decodes])
        for row in range(plan.num_decodes, len(plan.slots)):
            self._write_chunk(int(plan.slots[row]), int(plan.starts[row]), int(plan.starts[row] + plan.counts[row]))
        slots, lengths = plan.slots, plan.starts + plan.counts
        if len(slots) > plan.num_decodes:
            slots, lengths = slots[plan.samples], lengths[plan.samples]
        if plan.masked_rows is not None:
            rows = plan.answers(masked=False)
            slots, lengths = slots[rows], lengths[rows]
        drawn = token_ids = (self._draw(slots, lengths) % np.uint64(self._vocab_size)).astype(np.int32)
        if self._choices:
            token_ids = self._choose(slots, lengths, drawn)
        self._history[slots, lengths] = np.maximum(token_ids, 0)
        return drawn, token_ids

    def _run_masked(self, plan: StepPlan, bits: UInt32Array) -> tuple[Int32Array, Int32Array]:
        """The same for the masked rows; each counts as drawn."""
        rows = plan.rows_to_sample(masked=True)
        slots, lengths = plan.slots[rows], plan.starts[rows] + plan.counts[rows]
        drawn = self._draw(slots, lengths)
        token_ids = pick_allowed(drawn, bits, self._vocab_size)
        for row in [row for row, slot in enumerate(slots.tolist()) if slot in self._choices] if self._choices else ():
            allowed = self._choices[int(slots[row])].among(bits[row], self._history[slots[row], : lengths[row]])
            token_ids[row] = allowed[int(drawn[row]) % len(allowed)] if allowed else -1
        self._history[slots, lengths] = np.maximum(token_ids, 0)
        return token_ids, token_ids

    def _draw(self, slots: Int32Array, lengths: Int32Array) -> UInt64Array:
        """The numbers that decide what these slots' tokens at these positions are."""
        return _hashes(self._context_sums(slots, lengths), self._weights[lengths], self._seed_hashes[slots])

    def _admit(self, admission: Admission) -> None:
        slot, params = admission.slot, admission.params
        self._history[slot, : len(admission.token_ids)] = admission.token_ids
        for group, blocks in enumerate(admission.block_tables):
            self._tables[group, slot, : len(blocks)] = blocks
        self._seed_hashes[slot : slot + 1] = _mix(np.array([params.seed % 2**64], np.uint64))
        self._choices.pop(slot, None)
        if has_choice(params):
            self._choices[slot] = Choice(params, admission.num_prompt_tokens, self._vocab_size)

    def _write(self, slots: Int32Array, positions: Int32Array) -> None:
        """Puts the cells of these slots' tokens at these positions into the cache; what followed in their blocks is lost."""
        if not len(slots):
            return
        cells, offsets = self._cells(slots, positions), positions % self._block_size
        for table, factor in zip(self._tables, self._factors, strict=True):
            blocks = table[slots, positions // self._block_size]
            before = self._sums[blocks, offsets - 1]
            before[offsets == 0] = 0
            self._sums[blocks, -1] = _POISON
            self._sums[blocks, offsets] = before + factor * cells

    def _write_chunk(self, slot: int, start: int, end: int) -> None:
        """Like `_write`, for positions start … end - 1 of one slot, block by block."""
        cells = self._cells(np.int32(slot), np.arange(start, end))
        while start < end:
            offset = start % self._block_size
            count = min(self._block_size - offset, end - start)
            added = np.cumsum(cells[:count], dtype=np.uint64)
            for table, factor in zip(self._tables, self._factors, strict=True):
                block = table[slot, start // self._block_size]
                before = self._sums[block, offset - 1] if offset else np.uint64(0)
                self._sums[block, -1] = _POISON
                self._sums[block, offset : offset + count] = before + factor * added
            cells, start = cells[count:], start + count

    def _cells(self, slots: "Int32Array | np.int32", positions: npt.NDArray[np.integer[Any]]) -> UInt64Array:
        """What the cache holds for the tokens of these slots at these positions."""
        return (self._history[slots, positions].astype(np.uint64) + np.uint64(1)) * self._weights[positions]  # type: ignore[no-any-return]

    def _context_sums(self, slots: Int32Array, lengths: Int32Array) -> UInt64Array:
        """Sum of the cells of the first `lengths` positions of each slot, or of those that each group sees, read through its block
        tables."""
        if not len(slots):
            return np.zeros(0, np.uint64)
        last_block, last_offset = (lengths - 1) // self._block_size, (lengths - 1) % self._block_size
        width = int(last_block.max())
        total = np.zeros(len(slots), np.uint64)
        for table, window in zip(self._tables, self._windows, strict=True):
            first = np.maximum(lengths - window, 0) if window else np.zeros_like(lengths)
            first_block, first_offset = first // self._block_size, first % self._block_size
            whole: BoolArray = (np.arange(width) >= first_block[:, None]) & (np.arange(width) < last_block[:, None])
            total += np.where(whole, self._sums[table[slots, :width], -1], np.uint64(0)).sum(axis=1, dtype=np.uint64)
            total += self._sums[table[slots, last_block], last_offset]
            unseen = self._sums[table[slots, first_block], first_offset - 1]  # of the first block
            total -= np.where(first_offset > 0, unseen, np.uint64(0))
        return total

    def _score(self, slot: int, scored: ScoredRow) -> PromptScores:
        lengths = np.arange(scored.start, scored.start + scored.count, dtype=np.int32)
        sums = self._context_sums(np.full_like(lengths, slot), lengths)
        hashes = _hashes(sums, self._weights[lengths], np.zeros(1, np.uint64))
        drawn = (hashes % np.uint64(self._vocab_size)).astype(np.int32)
        return simulated_scores(scored.start, drawn, self._history[slot, lengths], scored.candidates, self._vocab_size)

    def _pool(self, plan: StepPlan, pooled: PooledRow) -> Float32Array | None:
        """The embedding of a row's prompt, once all of it is computed."""
        slot, start, count = (int(array[pooled.row]) for array in (plan.slots, plan.starts, plan.counts))
        last = pooled.pooling == "last"
        lengths = np.arange(start + count if last else start + 1, start + count + 1, dtype=np.int32)
        total = _states(self._context_sums(np.full_like(lengths, slot), lengths)).sum(0)
        if not last:
            self._state_sums[slot] = total = total + (self._state_sums[slot] if start else 0)
        return _pooled(total, 1 if last else start + count) if plan.samples[pooled.row] else None

    def _choose(self, slots: Int32Array, lengths: Int32Array, drawn: Int32Array) -> Int32Array:
        token_ids = drawn.copy()
        for row, slot in enumerate(slots.tolist()):
            if (choice := self._choices.get(slot)) is not None:
                token_ids[row] = choice.choose(int(drawn[row]), self._history[slot, : lengths[row]])
        return token_ids
