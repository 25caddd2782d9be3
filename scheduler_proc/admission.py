"""Who waits for a slot, in which line, and who gets one next."""

from collections.abc import Iterable, Mapping

from scheduler_proc.lane import Lane, Scores
from scheduler_proc.policy import choose_lane
from scheduler_proc.probation import Probation
from scheduler_proc.request import Request
from scheduler_proc.rounds import Rounds
from scheduler_proc.waiting import WaitingQueue


class Admission:
    """Three lines: that of the suspects of a worker's death, who run apart, that of requests whose prompts no worker can score or
    pool yet, who hold nobody up meanwhile, and that of everybody else."""

    def __init__(self, lanes: Mapping[int, Lane], requests: Mapping[int, Request], num_workers: int) -> None:
        """`lanes`: by worker, those that live; `requests`: by id, those that have not ended; `num_workers`: that should live."""
        self.waiting = WaitingQueue()
        self.unscored = WaitingQueue()
        self.rounds = Rounds()
        self._lanes = lanes
        self.probation = Probation(lanes, requests, num_workers)

    def __len__(self) -> int:
        return len(self.waiting) + len(self.unscored) + len(self.probation.line)

    def __contains__(self, request: Request) -> bool:
        return request in self.waiting or request in self.unscored or request in self.probation.line

    def enqueue(self, requests: Iterable[Request]) -> None:
        """Puts requests in line that hold no slot; also those that stand in a line, and belong in the other one by now."""
        for request in list(requests):
            self.waiting.remove(request)
            self.unscored.remove(request)
            self.probation.line.remove(request)
            (self.probation.line if self.probation.takes(request) else self.waiting).push(request)

    def leave(self, request: Request) -> None:
        """The request has ended, wherever it was."""
        self.waiting.remove(request)
        self.unscored.remove(request)
        self.probation.forget(request)

    def admit(self, now_ns: int) -> None:
        """Hands slots out, strictly in order: nobody overtakes a head that does not fit yet."""
        while (found := self.probation.admissible(now_ns)) is not None:
            suspect, lane = found
            lane.admit(suspect, f"on probation on worker {lane.worker}")
        if len(self.unscored) and self._can_score():
            self.enqueue(self.unscored)
        while (request := self.waiting.head()) is not None:
            if request.needs_scores and not self._can_score():
                self.unscored.push(self.waiting.pop())
                continue
            lanes = self.probation.open_lanes()
            if request.needs_scores:
                lanes = [lane for lane in lanes if lane.scores is Scores.READY]
            open_lane = choose_lane(lanes, request)
            if open_lane is None:
                return
            self.rounds.begin(request.round)
            open_lane.admit(self.waiting.pop(), f"admitted to worker {open_lane.worker}")

    def _can_score(self) -> bool:
        """Whether a worker scores and pools prompts. If none does, all are to prepare for it."""
        if any(lane.scores is Scores.READY for lane in self._lanes.values()):
            return True
        for lane in self._lanes.values():
            lane.want_scores()
        return False
