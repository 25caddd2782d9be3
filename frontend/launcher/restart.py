"""When a worker that died may start again, and when the engine gives up on it."""

from collections import deque

FIRST_DELAY = 1.0  # seconds before the second restart in a row; the first is immediate, since most deaths are single
LONGEST_DELAY = 30.0  # seconds; beyond this an operator waits longer for a mended device than the device needs
WINDOW = 300.0  # seconds over which deaths are counted
DEATHS_IN_WINDOW = 5  # this many deaths of one worker within the window are a crash loop
FAILED_BOOTS = 3  # deaths in a row before ready: a start may take longer than the window, so these count without one


class RestartPolicy:
    """The deaths of one worker, and the delay before each new start: 0, then 1, 2, 4, … seconds while deaths stay close."""

    def __init__(self) -> None:
        self._deaths: deque[float] = deque()
        self._failed_boots = 0

    def died(self, now: float, *, was_ready: bool) -> float | None:
        """Records a death at `now` (seconds). Returns the seconds to wait before the restart, or None: do not restart."""
        self._deaths.append(now)
        while self._deaths[0] < now - WINDOW:
            self._deaths.popleft()
        self._failed_boots = 0 if was_ready else self._failed_boots + 1
        if len(self._deaths) >= DEATHS_IN_WINDOW or self._failed_boots >= FAILED_BOOTS:
            return None
        recent = len(self._deaths)
        return 0.0 if recent == 1 else min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** (recent - 2))

    def describe(self) -> str:
        """The crash loop in words, for the operator."""
        if self._failed_boots >= FAILED_BOOTS:
            return f"failed to start {self._failed_boots} times in a row"
        return f"died {len(self._deaths)} times within {WINDOW:.0f} s"
