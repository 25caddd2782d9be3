"""Drives a Device by hand: requests in, tokens out, with steps in flight."""

import functools
import operator
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from protocol.codec import Float32Array, Int32Array, UInt32Array, unpack_float32
from protocol.messages import PromptScores, TopLogprobs
from protocol.params import EngineParams
from tpu_worker.device import Admission, Device, Extension, PooledRow, ScoredRow, StepPlan, StepResult
from tpu_worker.needs import LOGPROBS, needs

_EMPTY = np.empty(0, np.int32)


@dataclass
class Running:
    """One request in a slot, and what came of it."""

    slot: int
    prompt: list[int]
    params: EngineParams
    tables: tuple[Int32Array, ...]
    position: int = 0  # next to compute
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    candidates: list[TopLogprobs] = field(default_factory=list)
    failed: bool = False
    scores: list[PromptScores] = field(default_factory=list)

    @property
    def embedding(self) -> Float32Array:
        """Of its prompt."""
        (found,) = self.scores
        return unpack_float32(found.embedding_f32)

    def scored(self) -> Float32Array:
        """Log-probabilities of the tokens of its prompt but the first, and of the candidates, [tokens - 1, 1 + candidates]."""
        parts = [unpack_float32(part.logprobs_f32).reshape(-1, 1 + self.params.prompt_logprobs) for part in self.scores]
        assert [part.start for part in self.scores] == [1 + sum(map(len, parts[:index])) for index in range(len(parts))]
        return np.concatenate(parts)


def allowed_at(position: int, vocab_size: int) -> list[int]:
    """What a constrained request may sample at this position: a rule that leaves one choice at some, few or many at others."""
    if position % 5 == 0:
        return [(17 * position) % vocab_size]
    step = 40 if position % 5 == 1 else 2
    return list(range(position % step, vocab_size, step))


def pack_bits(allowed: Sequence[Sequence[int]], vocab_size: int) -> UInt32Array:
    """Masks [rows, ceil(V / 32)] of these token ids."""
    flags = np.zeros((len(allowed), -(-vocab_size // 32) * 32), np.uint8)
    for row, ids in enumerate(allowed):
        flags[row, list(ids)] = 1
    return np.packbits(flags, axis=1, bitorder="little").view("<u4")


def _scored(order: Sequence[tuple[Running, int]]) -> tuple[ScoredRow, ...]:
    """What rows of prompts, each with its count, score."""
    wanted = []
    for row, (request, count) in enumerate(order):
        score = min(count, len(request.prompt) - 1 - request.position)
        if request.params.prompt_logprobs >= 0 and score > 0:
            wanted.append(ScoredRow(row, request.position + 1, score, request.params.prompt_logprobs))
    return tuple(wanted)


def _pooled(order: Sequence[tuple[Running, int]]) -> tuple[PooledRow, ...]:
    """What rows of prompts, each with its count, pool."""
    wanted = []
    for row, (request, count) in enumerate(order):
        pooling = request.params.pooling
        ends = request.position + count == len(request.prompt)
        if request.position < len(request.prompt) and (pooling == "mean" or (pooling == "last" and ends)):
            wanted.append(PooledRow(row, pooling))
    return tuple(wanted)


class Driver:
    """Plans as a scheduler would, without its freedom: every request's blocks are taken at once, far apart and out of order."""

    def __init__(
        self, device: Device, num_blocks: int, block_size: int, depth: int = 2, vocab_size: int = 0, num_groups: int = 1
    ) -> None:
        """`vocab_size`: where requests are constrained. `num_groups`: of the KV cache."""
        self._device = device
        self._block_size = block_size
        self._depth = depth
        self._num_groups = num_groups
        self._free = list(np.random.default_rng(0).permutation(num_blocks))
        self._flying: deque[tuple[int, object, list[Running]]] = deque()
        self._scoring: dict[int, dict[int, Running]] = {}  # step -> whom its rows score
        self._vocab_size = vocab_size
        self._steps = 0
        self.failed_programs = 0

    def request(self, slot: int, prompt: list[int], params: EngineParams) -> Running:
        """A request with blocks for all that it may come to."""
        need = -(-(len(prompt) + (0 if params.pooling else params.max_tokens)) // self._block_size)
        tables = tuple(np.array([self._free.pop() for _ in range(need)], np.int32) for _ in range(self._num_groups))
        return Running(slot, prompt, params, tables)

    def step(self, rows: list[tuple[Running, int]], extensions: tuple[Extension, ...] = ()) -> None:
        """One step in which each request computes a number of tokens. A request is admitted by its first."""
        order = sorted(rows, key=lambda row: row[1] != 1 or row[0].position < len(row[0].prompt))
        decodes = sum(count == 1 and request.position >= len(request.prompt) for request, count in order)
        admissions = tuple(
            Admission(r.slot, np.array(r.prompt, np.int32), r.tables, len(r.prompt), r.params) for r, _ in order if r.position == 0
        )
        counts = np.array([count for _, count in order], np.int32)
        starts = np.array([r.position for r, _ in order], np.int32)
        samples = np.array([r.position + count >= len(r.prompt) for r, count in order])
        slots = np.array([r.slot for r, _ in order], np.int32)
        sampling = [r.params for (r, _), sampled in zip(order, samples, strict=True) if sampled]
        masked = np.array([params.structured is not None for params in sampling], bool)
        plain_needs, masked_needs = (
            functools.reduce(operator.or_, (needs(p) for p, m in zip(sampling, masked, strict=True) if m == one), 0)
            for one in (False, True)
        )
        wanted = plain_needs | masked_needs
        num_logprobs = np.array([params.logprobs for params in sampling], np.int32) if wanted & LOGPROBS else None
        masked_rows = np.flatnonzero(masked).astype(np.int32) if masked.any() else None
        plan = StepPlan(
            self._steps, admissions, _EMPTY, _EMPTY, _EMPTY, slots, starts, counts, samples, decodes,
            plain_needs, num_logprobs, masked_rows, masked_needs, extensions, _scored(order), _pooled(order),
        )  # fmt: skip
        reading = [scored.row for scored in plan.scored] + [pooled.row for pooled in plan.pooled]
        self._scoring[self._steps] = {row: order[row][0] for row in reading}
        sampled = [r for (r, _), s in zip(order, samples, strict=True) if s]
        handle = self._device.forward(plan)
        self._flying.append((self._steps, handle, [r for r, m in zip(sampled, masked, strict=True) if not m]))
        for request, count in order:
            request.position += count
        if masked_rows is not None:
            constrained = [r for r, m in zip(sampled, masked, strict=True) if m]
            bits = pack_bits([allowed_at(r.position, self._vocab_size) for r in constrained], self._vocab_size)
            self._flying.append((-1, self._device.sample(handle, bits), constrained))
        self._steps += 1
        while len(self._flying) >= self._depth:
            self.collect()

    def collect(self) -> None:
        """Takes in the oldest step in flight."""
        step, handle, sampling = self._flying.popleft()
        result: StepResult = self._device.collect(handle)
        for row, scores in result.prompt_scores.items():
            self._scoring[step][row].scores.append(scores)
        self.failed_programs += result.failed_programs
        for row, (request, token) in enumerate(zip(sampling, result.token_ids.tolist(), strict=True)):
            request.tokens.append(token)
            request.failed |= row in result.failed_rows
            if row in result.logprobs:
                request.logprobs.append(result.logprobs[row].logprob)
                request.candidates.append(result.logprobs[row])

    def finish(self) -> None:
        """Takes in everything in flight, and gives back no blocks."""
        while self._flying:
            self.collect()

    def run(self, prompts: list[list[int]], params: EngineParams | Sequence[EngineParams], chunk: int = 10**9) -> list[Running]:
        """All requests side by side, each prefilled in chunks, until each has its max_tokens. `params`: of all, or of each."""
        each = [params] * len(prompts) if isinstance(params, EngineParams) else params
        requests = [self.request(slot, prompt, its) for slot, (prompt, its) in enumerate(zip(prompts, each, strict=True))]
        while True:
            rows = []
            for r in requests:
                if r.position < len(r.prompt):
                    rows.append((r, min(chunk, len(r.prompt) - r.position)))
                elif r.position < len(r.prompt) + r.params.max_tokens - 1:
                    rows.append((r, 1))
            if not rows:
                break
            self.step(rows)
        self.finish()
        return requests
