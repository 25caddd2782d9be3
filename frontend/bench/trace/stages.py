"""What can be read off recorded steps."""

from dataclasses import dataclass

import numpy as np

from frontend.client.steps import Steps
from protocol.codec import Int64Array


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Mean microseconds of a step outside the device, by stage."""

    scheduler: float  # planning and encoding
    pipe: float  # scheduler to worker and back
    worker: float  # inputs, dispatch, collection
    answer: float  # collected to taken in by the scheduler, pipe included


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
