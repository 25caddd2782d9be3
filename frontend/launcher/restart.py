"""When a child that died starts again, and whether it is in a crash loop."""

from collections import deque

LONGEST = 30  # times the first delay; beyond this an operator waits longer for a mended device than the device needs
WINDOW = 300.0  # seconds over which deaths are counted
VITAL_WINDOW = 60.0  # seconds over which deaths of a process are counted that all requests go through
FAILED_BOOTS = 3  # deaths in a row before ready: a start may take longer than the window, so these count without one


class RestartPolicy:
    """The deaths of one child. It starts again at once, since most deaths are single, then after 1, 2, 4, … 30 times the first
    delay while deaths stay close."""

    def __init__(self, first_delay: float, max_deaths: int, *, vital: bool = False) -> None:
        """`first_delay`: seconds before the second restart in a row. `max_deaths`: this many within a window are a crash loop (what
        supervisors of Erlang/OTP call an intensity). `vital`: all requests go through it, so it always starts again at once, unless
        it fails to start.
        """
        self._first_delay = first_delay
        self._vital = vital
        self._max_deaths = max_deaths
        self._window = VITAL_WINDOW if vital else WINDOW
        self._deaths: deque[float] = deque()  # within the window
        self._failed_boots = 0
        self.due: float | None = None  # when it starts again, seconds; None: it lives

    def died(self, now: float, *, was_ready: bool) -> float:
        """Records a death at `now` (seconds). Returns the seconds until the restart is due."""
        self._deaths.append(now)
        while self._deaths[0] < now - self._window:
            self._deaths.popleft()
        self._failed_boots = 0 if was_ready else self._failed_boots + 1
        in_a_row = self._failed_boots if self._vital else max(len(self._deaths), self._failed_boots)
        delay = 0.0 if in_a_row <= 1 else self._first_delay * min(LONGEST, 2.0 ** min(in_a_row - 2, 10))
        self.due = now + delay
        return delay

    @property
    def is_crash_loop(self) -> bool:
        """Whether, as of its last death, it cannot be kept alive."""
        return len(self._deaths) >= self._max_deaths or self._failed_boots >= FAILED_BOOTS

    def describe(self) -> str:
        """The crash loop in words, for the operator."""
        if self._failed_boots >= FAILED_BOOTS:
            return f"failed to start {self._failed_boots} times in a row"
        return f"died {len(self._deaths)} times within {self._window:.0f} s"
