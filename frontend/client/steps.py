"""The recorded steps of an engine, as columns."""

from dataclasses import dataclass

import numpy as np

from frontend.wire import TraceReport
from protocol.codec import Int64Array


@dataclass(frozen=True, slots=True)
class Steps:
    """One row per step, in the order of their answers. All times in nanoseconds on one clock.

    `delivered_ns`: when the frontend had the tokens of the step, 0 where it was sent none. `scheduler_proc.trace` names the others.
    """

    columns: dict[str, Int64Array]  # each [steps]

    def __len__(self) -> int:
        return len(self.columns["step_id"])

    def __getitem__(self, name: str) -> Int64Array:
        return self.columns[name]

    def of_worker(self, worker: int) -> "Steps":
        """The steps of one worker."""
        return self.where(self["worker"] == worker)

    def where(self, rows: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> "Steps":
        """The steps of these rows."""
        return Steps({name: column[rows] for name, column in self.columns.items()})

    def last(self, count: int) -> "Steps":
        """The latest steps."""
        first = max(0, len(self) - count)
        return Steps({name: column[first:] for name, column in self.columns.items()})

    @property
    def workers(self) -> list[int]:
        """Who ran steps."""
        return [int(worker) for worker in np.unique(self["worker"])]


def read_steps(report: TraceReport) -> Steps:
    """The steps that the scheduler recorded, with what the frontend recorded of them."""
    records = report.records
    rows = np.frombuffer(records.rows_i64, "<i8").reshape(-1, len(records.columns))
    steps = Steps({name: rows[:, index] for index, name in enumerate(records.columns)})
    answered = np.frombuffer(report.answered_i64, "<i8").reshape(-1, 3)
    when = {(worker, step_id): received_ns for worker, step_id, received_ns in answered.tolist()}
    pairs = zip(steps["worker"].tolist(), steps["step_id"].tolist(), strict=True)
    return Steps(steps.columns | {"delivered_ns": np.array([when.get(pair, 0) for pair in pairs], np.int64)})
