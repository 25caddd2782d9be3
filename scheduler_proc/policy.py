"""Choices with more than one defensible answer: which worker takes a request, and who gives way when blocks run out."""

from collections.abc import Iterable

from scheduler_proc.lane import Lane
from scheduler_proc.request import Request


def choose_lane(lanes: Iterable[Lane], request: Request) -> Lane | None:
    """The lane with the least outstanding work among those that can take the request now, or None."""
    return least_busy(lane for lane in lanes if lane.can_admit(request))


def least_busy(lanes: Iterable[Lane]) -> Lane | None:
    """The lane with the least outstanding work, or None when there is no lane.

    Work counts sequences first, since each costs a row of every step, then prompt tokens not yet computed.
    """
    return min(lanes, key=lambda lane: (lane.num_running, lane.prefill_backlog, lane.worker), default=None)


def choose_victim(running: Iterable[tuple[int, Request]]) -> int:
    """Slot of the request to preempt: the lowest priority, and within it the latest arrival, whose work is the least to repeat."""
    return max(running, key=lambda entry: entry[1].rank)[0]
