"""When a main loop owes its pulse."""

LONGEST_INTERVAL = 1.0  # seconds
_PULSES_PER_LIMIT = 5  # a late one is no cause for alarm, and neither are two


def pulse_interval(timeout: float) -> float:
    """Seconds between two pulses, when a process may be silent for `timeout` seconds. No loop waits for longer than this."""
    return min(LONGEST_INTERVAL, timeout / _PULSES_PER_LIMIT)


class Metronome:
    """Says when the next pulse is due. Asked on every pass of a loop, and by nobody else: a pulse says that the loop goes round."""

    def __init__(self, interval: float) -> None:
        """`interval`: seconds. The first pulse is due at once."""
        self._interval_ns = int(interval * 1e9)
        self._due_ns = 0

    def is_due(self, now_ns: int) -> bool:
        """Whether a pulse is to be sent now; the next one is then due an interval later."""
        if now_ns < self._due_ns:
            return False
        self._due_ns = now_ns + self._interval_ns
        return True
