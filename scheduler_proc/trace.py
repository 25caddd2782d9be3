"""The last few thousand steps, in a ring of integers that costs next to nothing."""

import numpy as np

from protocol.codec import Int64Array
from protocol.messages import ModelRunnerOutput
from scheduler_proc.in_flight import InFlightStep

CAPACITY = 8192  # steps: about 16 s at 2 ms a step, in 1 MB

COLUMNS = (
    "worker",
    "step_id",
    "num_decodes",
    "num_prefill_tokens",
    "scheduled_ns",  # the scheduler began to plan the step
    "sent_ns",
    "received_ns",  # by the worker
    "prepared_ns",  # inputs ready
    "dispatched_ns",
    "started_ns",  # on the device
    "finished_ns",  # on the device
    "collected_ns",  # values on the host
    "answered_ns",  # taken in by the scheduler
)


class TraceRing:
    """One row of `COLUMNS` per returned step; the oldest rows are overwritten."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._rows = np.zeros((capacity, len(COLUMNS)), np.int64)
        self._count = 0

    def record(self, worker: int, step: InFlightStep, output: ModelRunnerOutput, answered_ns: int) -> None:
        """Adds one step, with its last answer."""
        planned = step.whole or step
        self._rows[self._count % len(self._rows)] = (
            worker,
            step.step_id,
            planned.num_decodes,
            planned.num_prefill_tokens,
            step.scheduled_ns,
            step.sent_ns,
            *output.times_ns,
            answered_ns,
        )
        self._count += 1

    @property
    def count(self) -> int:
        """How many steps were recorded."""
        return self._count

    def rows(self, since: int = 0, most: int = -1) -> Int64Array:
        """Copy of what the ring holds, oldest first, shape [steps, len(COLUMNS)].

        `since`: number of the first one wanted; beyond `count`: that of another ring, and all are. `most`: of the latest; below 0:
        all of these.
        """
        capacity = len(self._rows)
        wanted = self._count - since if 0 <= since <= self._count else self._count
        held = min(wanted, capacity, most if most >= 0 else capacity)
        return self._rows[np.arange(self._count - held, self._count) % capacity]
