"""The seam between the worker and what executes its steps: a real accelerator, or a simulated one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from protocol.codec import BoolArray, Int32Array
from protocol.messages import TopLogprobs
from protocol.params import EngineParams

ReportProgress = Callable[[str, int, int], None]  # phase, done, total


@dataclass(frozen=True, slots=True)
class Admission:
    """A request that takes a slot in this step. Its arrays replace whatever the slot held."""

    slot: int
    token_ids: Int32Array  # [known tokens]
    block_ids: Int32Array  # [blocks]
    num_prompt_tokens: int
    params: EngineParams


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step, complete: what a device must do, with the standing decode orders spelled out.

    R rows; row r computes positions starts[r] … starts[r] + counts[r] - 1 of the request in slots[r]. Input tokens are read on
    the device, from the history of the slot: known tokens were written there at admission, each sampled token by the step that
    sampled it. Rows with samples[r] draw the token at position starts[r] + counts[r] and write it to the history.
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
    needs: int = 0  # of the rows that sample, together: bits of `tpu_worker.needs`
    num_logprobs: Int32Array | None = None  # [rows that sample]: how many candidates each asks for, -1: none; None: none does

    @property
    def num_tokens(self) -> int:
        """Of all rows."""
        return self.num_decodes if self.num_decodes == len(self.slots) else int(self.counts.sum())


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step yields, for its sampling rows in their order."""

    token_ids: Int32Array  # [rows that sample]
    failed_rows: tuple[int, ...] = ()  # indices among the sampling rows whose logits were not finite
    logprobs: dict[int, TopLogprobs] = field(default_factory=dict)  # by index among the sampling rows, where asked
    started_ns: int = 0  # when the device began and ended the step, as well as the host can tell
    finished_ns: int = 0
    failed_programs: int = 0  # that could not be compiled, since the step before


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a loaded device can hold."""

    num_blocks: int
    block_size: int  # tokens
    max_model_len: int  # tokens
    vocab_size: int
    description: str  # for people: "cpu (2 threads)", "TPU v6e x4"
    saturating_tokens: int = 0  # tokens of a step from which on its time grows in proportion; 0: not known


class Device(Protocol):
    """Executes steps strictly in the order of their dispatch.

    `dispatch` runs on the worker's main thread and returns as soon as the step is queued; `collect` runs on the collector thread,
    once for each handle in the same order, and waits for the step to end.
    """

    def load(self, report: ReportProgress) -> Capacity:
        """Loads weights, sizes the KV cache, compiles. Raises EngineError with the cause."""
        ...

    def dispatch(self, plan: StepPlan) -> object:
        """Queues one step and returns its handle."""
        ...

    def collect(self, handle: object) -> StepResult:
        """Waits until the step of this handle has ended and returns what it sampled."""
        ...

    def close(self) -> None:
        """Releases the device after the last collect."""
        ...
