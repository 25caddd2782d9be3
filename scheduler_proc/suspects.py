"""Which requests may have killed a worker, and when one of them is given up.

A worker that dies had rows in flight, and one of them may be to blame. The suspects run apart from each other until each has
computed again all that was in flight when the worker died: then it is cleared. Whoever is the only suspect in a further death is
failed.

Not every death has a culprit among the requests: an operator, or the kernel when memory runs out, kills from outside, at moments
that have nothing to do with what runs. Such a death is weak evidence. Suspects of it run in company, of which each further death
leaves a part, so that most are cleared at once and a culprit among n is still alone after O(log n) deaths; and it is failed only
when it dies alone several times at the same place. Deaths without it are a sign that somebody kills at random, and ask for more.
"""

import signal
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from protocol.errors import ExitCode

_OWN_SIGNALS = frozenset(
    {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS}
)
_LONE_DEATHS_BY_OWN_FAULT = 1  # beside an earlier death: a crash that follows a request to where it runs by itself is its own
# One or two may be chance: a kill that hits the few steps in which a request is on probation. An engine of one worker must find
# the culprit sooner, since its launcher gives up at the fifth death in a few minutes when no other worker serves: one among 64
# is found at the fourth.
_LONE_DEATHS_FROM_OUTSIDE, _COMPANY_LEFT = 3, 4  # of so many suspects one, after a further death from outside
_LONE_DEATHS_OF_THE_ONLY_WORKER, _COMPANY_LEFT_THERE = 2, 8
_LONE_DEATHS_MORE = 2  # while workers die without the request, too
_SECLUSION_NS = 30 * 10**9  # the longest that a replacement is put off: whoever waits for one longer waits for a worker in trouble
_WINDOW_NS = 600 * 10**9  # deaths that are further back say nothing about today's
_MOST_DEATHS = 256  # remembered; a worker takes seconds to come back, so this is a window of bad minutes
_ANY = 2**31  # company that is not limited


def by_own_fault(returncode: int) -> bool:
    """Whether a process that ended like this (negative: by that signal) did so by itself, and not because somebody killed it."""
    return (returncode > 0 and returncode != ExitCode.RANK_LOST) or -returncode in _OWN_SIGNALS


@dataclass(frozen=True, slots=True)
class Sighting:
    """A request in flight when its worker died."""

    start: int  # the positions of its rows in flight: start … end - 1
    end: int
    pass_at: int  # tokens that it knows once everything that was in flight has been computed again
    proven: bool  # it had got tokens since it was admitted there: newcomers are blamed before it


@dataclass(slots=True)
class Suspicion:
    """What is held against one request until it is cleared."""

    pass_at: int = 0  # as of the last death
    start: int = 0  # positions that were in flight at each of its deaths from outside: what kills at all of them is one of these
    end: int = _ANY
    lone_deaths: int = 0  # in a row, with nobody else to blame
    company: int = _ANY  # suspects that may run at a time where this one does
    apart: bool = False  # it is blamed, and not only seen
    secluded_until_ns: int = 0  # till then it waits for a worker that runs nobody else, so as not to take others down with it


class Suspects:
    """The requests in flight at recent deaths of workers that are neither cleared nor ended."""

    def __init__(self, num_workers: int) -> None:
        """`num_workers`: that the engine should have."""
        single = num_workers == 1
        self._lone_deaths_needed = _LONE_DEATHS_OF_THE_ONLY_WORKER if single else _LONE_DEATHS_FROM_OUTSIDE
        self._company_left = _COMPANY_LEFT_THERE if single else _COMPANY_LEFT
        self._suspicions: dict[int, Suspicion] = {}  # by request id
        self._deaths: deque[tuple[int, set[int]]] = deque(maxlen=_MOST_DEATHS)  # when, and those of the above that were in flight

    def __len__(self) -> int:
        return len(self._suspicions)

    def __iter__(self) -> Iterator[int]:
        return iter(self._suspicions)

    @property
    def apart(self) -> list[int]:
        """Who must run apart."""
        return [request_id for request_id, suspicion in self._suspicions.items() if suspicion.apart]

    def runs_apart(self, request_id: int) -> bool:
        """Whether this request must run apart."""
        suspicion = self._suspicions.get(request_id)
        return suspicion is not None and suspicion.apart

    def secluded_until_ns(self, request_id: int) -> int:
        """Till when this suspect must not share a worker with requests that are none."""
        return self._suspicions[request_id].secluded_until_ns

    def num_deaths(self, request_id: int) -> int:
        """Recent deaths that may be this request's doing."""
        return sum(request_id in seen for _, seen in self._deaths)

    def may_join(self, request_id: int, others: Collection[int]) -> bool:
        """Whether this suspect may run now that the suspects `others` do."""
        company = min(self._suspicions[one].company for one in (request_id, *others))
        return len(others) < company

    def blame(self, seen: Mapping[int, Sighting], *, own_fault: bool, now_ns: int) -> int | None:
        """A worker died with these requests in flight. Returns the one to be failed, if it is clear who did it."""
        while self._deaths and self._deaths[0][0] < now_ns - _WINDOW_NS:
            self._deaths.popleft()
        self._deaths.append((now_ns, set(seen)))
        # Whoever ran well before is believed, as long as there are others to blame.
        doubtful = [one for one, sighting in seen.items() if one in self._suspicions or not sighting.proven]
        accused = doubtful or list(seen)
        for one, sighting in seen.items():
            self._note(one, sighting, own_fault=own_fault)
        for one in accused:
            suspicion = self._suspicions[one]
            alone = accused == [one] and (suspicion.apart or len(seen) == 1)
            suspicion.lone_deaths = suspicion.lone_deaths + 1 if alone else 0
            suspicion.company = 1 if own_fault else max(1, min(suspicion.company, len(accused)) // self._company_left)
            if own_fault or suspicion.apart:
                suspicion.secluded_until_ns = now_ns + _SECLUSION_NS
            suspicion.apart = True
        if len(accused) == 1 and self._is_certain(accused[0], own_fault=own_fault):
            return accused[0]
        return None

    def passed(self, request_id: int, num_known: int) -> bool:
        """Whether the suspect has run through all that was in flight when its worker died. If so, it is one no more."""
        if num_known < self._suspicions[request_id].pass_at:
            return False
        self.forget(request_id)
        return True

    def forget(self, request_id: int) -> None:
        """A request is cleared, or has ended; suspect or not."""
        if self._suspicions.pop(request_id, None) is not None:
            for _, seen in self._deaths:
                seen.discard(request_id)

    def convict(self, request_id: int) -> None:
        """The deaths that this request was seen in are explained: who was seen in no other is cleared."""
        self._deaths = deque(((at_ns, seen) for at_ns, seen in self._deaths if request_id not in seen), self._deaths.maxlen)
        still_seen = set().union(*(seen for _, seen in self._deaths))
        self._suspicions = {one: suspicion for one, suspicion in self._suspicions.items() if one in still_seen}

    def _note(self, request_id: int, sighting: Sighting, *, own_fault: bool) -> None:
        """This request was in flight at the death that was recorded last."""
        suspicion = self._suspicions.setdefault(request_id, Suspicion())
        suspicion.pass_at = sighting.pass_at
        start, end = max(suspicion.start, sighting.start), min(suspicion.end, sighting.end)
        if start >= end and not own_fault:  # at one of its deaths it was not yet, or no more, where it was at another: chance
            suspicion.lone_deaths = 0
            for _, seen in list(self._deaths)[:-1]:
                seen.discard(request_id)
        suspicion.start, suspicion.end = (start, end) if start < end else (sighting.start, sighting.end)

    def _is_certain(self, request_id: int, *, own_fault: bool) -> bool:
        needed = _LONE_DEATHS_BY_OWN_FAULT if own_fault else self._lone_deaths_needed
        if self.num_deaths(request_id) < len(self._deaths):
            needed += _LONE_DEATHS_MORE
        return self.num_deaths(request_id) >= 2 and self._suspicions[request_id].lone_deaths >= needed
