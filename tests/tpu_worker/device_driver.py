"""Drives a Device by hand: requests in, tokens out, with steps in flight."""

import functools
import operator
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from protocol.codec import Int32Array
from protocol.params import EngineParams
from tpu_worker.device import Admission, Device, StepPlan, StepResult
from tpu_worker.needs import LOGPROBS, needs

_EMPTY = np.empty(0, np.int32)


@dataclass
class Running:
    """One request in a slot, and what came of it."""

    slot: int
    prompt: list[int]
    params: EngineParams
    blocks: Int32Array
    position: int = 0  # next to compute
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    failed: bool = False


class Driver:
    """Plans as a scheduler would, without its freedom: every request's blocks are taken at once, far apart and out of order."""

    def __init__(self, device: Device, num_blocks: int, block_size: int, depth: int = 2) -> None:
        self._device = device
        self._block_size = block_size
        self._depth = depth
        self._free = list(np.random.default_rng(0).permutation(num_blocks))
        self._flying: deque[tuple[object, list[Running]]] = deque()
        self._steps = 0
        self.failed_programs = 0

    def request(self, slot: int, prompt: list[int], params: EngineParams) -> Running:
        """A request with blocks for all that it may come to."""
        need = -(-(len(prompt) + params.max_tokens) // self._block_size)
        blocks = np.array([self._free.pop() for _ in range(need)], np.int32)
        return Running(slot, prompt, params, blocks)

    def step(self, rows: list[tuple[Running, int]]) -> None:
        """One step in which each request computes a number of tokens. A request is admitted by its first."""
        order = sorted(rows, key=lambda row: row[1] != 1 or row[0].position < len(row[0].prompt))
        decodes = sum(request.position >= len(request.prompt) for request, _ in order)
        admissions = tuple(
            Admission(r.slot, np.array(r.prompt, np.int32), r.blocks, len(r.prompt), r.params) for r, _ in order if r.position == 0
        )
        counts = np.array([count for _, count in order], np.int32)
        starts = np.array([r.position for r, _ in order], np.int32)
        samples = np.array([r.position + count >= len(r.prompt) for r, count in order])
        slots = np.array([r.slot for r, _ in order], np.int32)
        sampling = [r.params for (r, _), sampled in zip(order, samples, strict=True) if sampled]
        wanted = functools.reduce(operator.or_, map(needs, sampling), 0)
        num_logprobs = np.array([params.logprobs for params in sampling], np.int32) if wanted & LOGPROBS else None
        plan = StepPlan(
            self._steps, admissions, _EMPTY, _EMPTY, _EMPTY, slots, starts, counts, samples, decodes, wanted, num_logprobs
        )
        self._flying.append((self._device.dispatch(plan), [r for (r, _), s in zip(order, samples, strict=True) if s]))
        self._steps += 1
        for request, count in order:
            request.position += count
        while len(self._flying) >= self._depth:
            self.collect()

    def collect(self) -> None:
        """Takes in the oldest step in flight."""
        handle, sampling = self._flying.popleft()
        result: StepResult = self._device.collect(handle)
        self.failed_programs += result.failed_programs
        for row, (request, token) in enumerate(zip(sampling, result.token_ids.tolist(), strict=True)):
            request.tokens.append(token)
            request.failed |= row in result.failed_rows
            if row in result.logprobs:
                request.logprobs.append(result.logprobs[row].logprob)

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
