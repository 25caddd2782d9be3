"""Whether a child gets on: by what its main loop says, and by whether the kernel lets it run. Liveness is progress."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds after which a child that does not get on is ended."""

    pulse: float  # stopped by a signal: the kernel says so, and nothing else explains it
    step: float  # serving, with a main loop that is silent: it may wait for its device, or for a host that has too much to do
    boot: float  # starting without progress: loading and compiling leave a process deaf for minutes, but not for ever

    def silence(self, *, ready: bool) -> float:
        """How long a main loop may be silent."""
        return max(self.pulse, self.step) if ready else self.boot


class Liveness:
    """The last signs of life of one process."""

    def __init__(self, now: float) -> None:
        self._ran_at = now  # the kernel let it run
        self._moved_at = now  # its main loop said something
        self._was_at = ""

    def moved_since(self, time: float) -> bool:
        """Whether its main loop said something after that time."""
        return self._moved_at > time

    def moved(self, now: float, where: str = "") -> None:
        """Its main loop said something. `where`: how far it is, for people."""
        self._moved_at = now
        self._was_at = where or self._was_at

    def ran(self, now: float) -> None:
        """The kernel has it running, or waiting for something: not stopped."""
        self._ran_at = now

    def stopped(self, now: float, limits: Limits) -> str:
        """Why a process that a signal stopped (SIGSTOP) is to be ended by now; empty: it is not."""
        if now - self._ran_at <= limits.pulse:
            return ""
        return f"it was stopped by a signal for {limits.pulse:g} s"

    def silent(self, now: float, limit: float) -> str:
        """Why a process whose main loop is silent is to be ended by now; empty: it is not. `limit`: seconds."""
        if now - self._moved_at <= limit:
            return ""
        return f"it made no progress for {limit:g} s" + (f", last seen {self._was_at}" if self._was_at else "")
