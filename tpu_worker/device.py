"""The seam between the worker and what executes its steps: a real accelerator, or a simulated one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from protocol.codec import BoolArray, Int32Array, UInt32Array
from protocol.messages import PromptScores, TopLogprobs
from protocol.params import EngineParams, Pooling

ReportProgress = Callable[[str, int, int], None]  # phase, done, total


@dataclass(frozen=True, slots=True)
class Admission:
    """A request that takes a slot in this step. Its arrays replace whatever the slot held."""

    slot: int
    token_ids: Int32Array  # [known tokens]
    block_tables: tuple[Int32Array, ...]  # of each KV cache group, [blocks]
    num_prompt_tokens: int
    params: EngineParams


@dataclass(frozen=True, slots=True)
class Extension:
    """Tokens that became known while their request decodes: they go to the history of its slot before the step reads it."""

    slot: int
    position: int  # of the first
    token_ids: Int32Array  # [known tokens]


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """Tokens of a prompt whose log-probabilities a row's chunk tells: each is predicted at the position before it."""

    row: int  # of the step
    start: int  # position of the first
    count: int
    candidates: int  # how many of the most likely tokens are wanted beside each


@dataclass(frozen=True, slots=True)
class PooledRow:
    """A chunk of a prompt whose embedding is wanted. A mean is begun where the row starts at position 0; each embedding is due in
    the step in which its row samples."""

    row: int  # of the step
    pooling: Pooling


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step, complete: what a device must do, with the standing decode orders spelled out.

    R rows; row r computes positions starts[r] … starts[r] + counts[r] - 1 of the request in slots[r]. Input tokens are read on
    the device, from the history of the slot: known tokens were written there at admission or by an extension, each sampled token by
    the step that sampled it. Rows with samples[r] draw the token at position starts[r] + counts[r] and write it to the history:
    as part of `forward`, or, where the row is among `masked_rows`, by `sample`, when its mask is here.
    """

    step_id: int
    admissions: tuple[Admission, ...]
    block_slots: Int32Array  # [K] slot whose table grows …
    block_indices: Int32Array  # [K] … at this index …
    block_ids: Int32Array  # [K] … by this block
    slots: Int32Array  # [R], decode rows first
    starts: Int32Array  # [R]
    counts: Int32Array  # [R], at least 1
    samples: BoolArray  # [R]
    num_decodes: int  # the first rows, with counts of 1
    needs: int = 0  # of the rows that sample without a mask, together: bits of `tpu_worker.needs`
    num_logprobs: Int32Array | None = None  # [rows that sample]: how many candidates each asks for, -1: none; None: none does
    masked_rows: Int32Array | None = None  # [M] indices among the rows that sample, rising: those that wait for masks; None: none
    masked_needs: int = 0  # of these
    extensions: tuple[Extension, ...] = ()
    scored: tuple[ScoredRow, ...] = ()  # by row, rising
    pooled: tuple[PooledRow, ...] = ()  # by row, rising; of those of which the last token counts, only rows that sample
    block_groups: Int32Array | None = None  # [K] … in the table of this KV cache group; None: all in that of the first

    @property
    def num_tokens(self) -> int:
        """Of all rows."""
        return self.num_decodes if self.num_decodes == len(self.slots) else int(self.counts.sum())

    def answers(self, *, masked: bool) -> Int32Array:
        """Indices among the rows that sample: of those that wait for a mask, or of those that do not."""
        if self.masked_rows is None:
            return np.arange(0 if masked else np.count_nonzero(self.samples), dtype=np.int32)
        if masked:
            return self.masked_rows
        return np.delete(np.arange(np.count_nonzero(self.samples), dtype=np.int32), self.masked_rows)

    def rows_to_sample(self, *, masked: bool) -> npt.NDArray[np.intp]:
        """Indices among the step's rows: of those that sample with a mask, or of those that sample without."""
        rows = self.samples.nonzero()[0]
        return rows if self.masked_rows is None and not masked else rows[self.answers(masked=masked)]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What `forward` or `sample` yields, for the rows that it samples in their order."""

    token_ids: Int32Array  # [rows]
    failed_rows: tuple[int, ...] = ()  # indices among these rows: their logits were not finite
    logprobs: dict[int, TopLogprobs] = field(default_factory=dict)  # by index among these rows, where asked
    started_ns: int = 0  # when the device began and ended the step, as well as the host can tell
    finished_ns: int = 0
    failed_programs: int = 0  # that could not be compiled, since the step before
    prompt_scores: dict[int, PromptScores] = field(default_factory=dict)  # by row of the step, of those scored, or pooled to an end


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a loaded device can hold."""

    num_blocks: int
    block_size: int  # tokens
    max_model_len: int  # tokens
    vocab_size: int
    description: str  # for people: "cpu (2 threads)", "TPU v6e x4"
    saturating_tokens: int = 0  # tokens of a step from which on its time grows in proportion; 0: not known
    scores_ready: bool = False  # `prepare_scores` need not be called
    weights: str = ""  # how they are kept, for people: "Q4_K 112 MB, Q6_K 34 MB"
    embedding_size: int = 0  # numbers of an embedding; 0: the model's family gives none
    windows: tuple[int, ...] = (0,)  # of each KV cache group, in tokens; 0: none
    kv_cache_dtype: str = ""  # what keys and values are kept as, for people


class Device(Protocol):
    """Executes steps strictly in the order of their dispatch.

    `forward` and `sample` run on the worker's main thread and return as soon as their work is queued. A step with masked rows is
    sampled before the next one is queued. `collect` runs on the collector thread, once for each handle in the same order, and waits
    until its work is done.
    """

    def load(self, report: ReportProgress) -> Capacity:
        """Loads weights, sizes the KV cache, compiles. Raises EngineError with the cause."""
        ...

    def forward(self, plan: StepPlan) -> object:
        """Queues one step, with the sampling of all rows that need no mask, and returns its handle."""
        ...

    def sample(self, handle: object, bits: UInt32Array) -> object:
        """Queues the sampling of the masked rows of a step that `forward` has queued, and returns a handle of its own.

        bits [M, ceil(V / 32)], beside the plan's `masked_rows`: bit b of word w allows token 32 w + b.
        """
        ...

    def collect(self, handle: object) -> StepResult:
        """Waits until what this handle stands for is done, and returns what it sampled."""
        ...

    def prepare_scores(self, ready: Callable[[str], None]) -> None:
        """Makes ready for steps whose rows are scored or pooled, without waiting for it. Calls `ready` on any thread: with an empty
        text, or why it cannot."""
        ...

    def close(self) -> None:
        """Releases the device after the last collect."""
        ...
