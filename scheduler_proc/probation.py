"""Where the suspects of a worker's death run: one worker at a time takes them, one after another, and nobody new beside them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scheduler_proc.lane import Lane
from scheduler_proc.policy import least_busy
from scheduler_proc.request import NOWHERE, Request
from scheduler_proc.suspects import Sighting, Suspects
from scheduler_proc.waiting import WaitingQueue


@dataclass(frozen=True, slots=True)
class Culprit:
    """A request that must be failed, and why."""

    request: Request
    text: str


class Probation:
    """The suspects in line, and the worker that they run on while there are any."""

    def __init__(self, lanes: Mapping[int, Lane], requests: Mapping[int, Request], num_workers: int) -> None:
        """`lanes`: by worker, those that live; `requests`: by id, those that have not ended; `num_workers`: that should live."""
        self.suspects = Suspects(num_workers)
        self.line = WaitingQueue()
        self._lanes = lanes
        self._requests = requests
        self.worker = NOWHERE  # takes the suspects, while there are any

    def blame(self, seen: Mapping[int, Sighting], *, own_fault: bool, now_ns: int) -> Culprit | None:
        """A worker died with these requests in flight. Returns the one that is to be failed, if any is."""
        culprit = self.suspects.blame(seen, own_fault=own_fault, now_ns=now_ns)
        if culprit is None:
            return None
        deaths = self.suspects.num_deaths(culprit)
        text = f"request {culprit} ran each of the {deaths} times that a worker died, at last by itself: it is given up"
        self.suspects.convict(culprit)
        return Culprit(self._requests[culprit], text)

    def takes(self, request: Request) -> bool:
        """Whether this request belongs in the line of suspects."""
        return self.suspects.runs_apart(request.request_id)

    def forget(self, request: Request) -> None:
        """A request has ended, suspect or not."""
        self.line.remove(request)
        self.suspects.forget(request.request_id)

    def clear(self, lane: Lane) -> None:
        """A step of this lane was taken in: who has run through what was in flight at a death is no suspect any more."""
        for request_id in list(self.suspects) if self.suspects else ():
            request = self._requests[request_id]
            if request.worker == lane.worker:
                self.suspects.passed(request_id, int(lane.known[request.slot]))

    def admissible(self, now_ns: int) -> tuple[Request, Lane] | None:
        """The next suspect that may run now, and where; it is taken out of the line."""
        request = self.line.head()
        if request is None or not self.suspects.may_join(request.request_id, self._running()):
            return None
        lane = self._choose_lane(request, now_ns)
        if lane is None:
            return None
        self.worker = lane.worker  # from now on nobody else is admitted there, so that there will be room
        return (self.line.pop(), lane) if lane.can_admit(request) else None

    def open_lanes(self) -> Iterable[Lane]:
        """Lanes for requests that are not on probation: all but the one that takes suspects, while there are any."""
        if not self.suspects.apart:
            self.worker = NOWHERE
        return (lane for lane in self._lanes.values() if lane.worker != self.worker)

    def _running(self) -> list[int]:
        return [request_id for request_id in self.suspects.apart if self._requests[request_id].slot != NOWHERE]

    def _choose_lane(self, request: Request, now_ns: int) -> Lane | None:
        """Where suspects run already, else a lane that is empty; else, unless this one is secluded, that with the least work."""
        if self.worker in self._lanes:
            return self._lanes[self.worker]
        lanes = [lane for lane in self._lanes.values() if not lane.num_running]
        if not lanes and now_ns >= self.suspects.secluded_until_ns(request.request_id):
            lanes = list(self._lanes.values())
        return least_busy(lanes)


def in_flight_requests(lane: Lane) -> dict[int, Sighting]:
    """By id, the requests of this lane that have not ended and have rows in flight."""
    seen: dict[int, Sighting] = {}
    for step in lane.in_flight:
        for slot, tenancy, start, end in step.rows():
            request = lane.holder(slot, tenancy)
            if request is None or request.finished:
                continue
            runs = request.slot == slot  # else it was preempted
            known = int(lane.known[slot]) if runs else len(request.tokens)
            earlier = seen.get(request.request_id)
            first = start if earlier is None else earlier.start
            seen[request.request_id] = Sighting(first, end, max(end, known) + 1, not runs or known > len(request.tokens))
    return seen
