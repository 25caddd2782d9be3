"""The one clock. Every timestamp in every process is read here."""

import time


def now_ns() -> int:
    """Nanoseconds on CLOCK_MONOTONIC: comparable between the processes of one host, unmoved by wall-clock changes."""
    return time.monotonic_ns()


def now() -> float:
    """Seconds on the same clock as `now_ns`."""
    return time.monotonic_ns() * 1e-9


class ChargedClock:
    """The time that a loop is held to account for: each of its passes charges two ticks at most, however long it took.

    Who measures others by the time that passed while it did not run itself (a paused container, a suspended host) accuses them of
    its own absence: nobody could answer then. Limits are therefore compared on this clock, which stands still in a freeze, and runs
    like any other as long as the loop comes round every tick.
    """

    def __init__(self, tick_ns: int, now_ns: int) -> None:
        """`tick_ns`: the longest that the loop waits. The clock begins at `now_ns`."""
        self._most_ns = 2 * tick_ns
        self._last_ns = now_ns
        self.now_ns = now_ns  # of the current pass

    def advance(self, now_ns: int) -> int:
        """A pass begins, at `now_ns` on the one clock. Returns the nanoseconds that limits are compared with."""
        self.now_ns += max(0, min(now_ns - self._last_ns, self._most_ns))
        self._last_ns = now_ns
        return self.now_ns

    @property
    def now(self) -> float:
        """Seconds, of the current pass."""
        return self.now_ns * 1e-9
