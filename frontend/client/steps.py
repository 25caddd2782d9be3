"""The recorded steps of an engine, as columns, and what can be read off them."""

from dataclasses import dataclass

import numpy as np

from protocol.codec import Int64Array
from protocol.messages import TraceRecords


@dataclass(frozen=True, slots=True)
class Steps:
    """One row per step, in the order of their answers. All times in nanoseconds on one clock."""

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
        return Steps({name: column[-count:] for name, column in self.columns.items()})

    @property
    def workers(self) -> list[int]:
        """Who ran steps."""
        return [int(worker) for worker in np.unique(self["worker"])]


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Mean microseconds of a step outside the device, by stage."""

    scheduler: float  # planning and encoding
    pipe: float  # scheduler to worker and back
    worker: float  # inputs, dispatch, collection
    answer: float  # collected to taken in by the scheduler, pipe included


def from_records(records: TraceRecords) -> Steps:
    """The steps that a scheduler recorded."""
    rows = np.frombuffer(records.rows_i64, "<i8").reshape(-1, len(records.columns))
    return Steps({name: rows[:, index] for index, name in enumerate(records.columns)})


def idle_share(steps: Steps) -> float:
    """Share of the time between first start and last end in which the device had nothing to run, averaged over the workers.

    Meant for a load that always has work: every gap counts.
    """
    shares = []
    for worker in steps.workers:
        own = steps.of_worker(worker)
        order = np.argsort(own["started_ns"])
        started, finished = own["started_ns"][order], own["finished_ns"][order]
        span = int(finished[-1] - started[0])
        gaps = np.maximum(started[1:] - finished[:-1], 0)
        shares.append(float(gaps.sum()) / span if span else 0.0)
    return float(np.mean(shares)) if shares else 0.0


def stage_times(steps: Steps) -> StageTimes:
    """Where the host's time of a step goes."""
    there = steps["received_ns"] - steps["sent_ns"]
    back = steps["answered_ns"] - steps["collected_ns"]
    return StageTimes(
        scheduler=_mean_us(steps["sent_ns"] - steps["scheduled_ns"]),
        pipe=_mean_us(there + back),
        worker=_mean_us(
            (steps["dispatched_ns"] - steps["received_ns"]) + np.maximum(steps["collected_ns"] - steps["finished_ns"], 0)
        ),
        answer=_mean_us(back),
    )


def _mean_us(nanoseconds: Int64Array) -> float:
    return float(nanoseconds.mean()) / 1e3 if len(nanoseconds) else 0.0
