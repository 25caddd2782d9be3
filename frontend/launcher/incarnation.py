"""One life of a child: what it said, why it was killed, and how its end reads."""

import signal
from dataclasses import dataclass

from frontend.launcher.events import Child
from frontend.launcher.liveness import Liveness
from protocol.errors import ExitCode
from protocol.messages import Failed


@dataclass(slots=True)
class Incarnation:
    """A process in its place, from start to end."""

    child: Child
    epoch: int
    liveness: Liveness
    alive: bool = True
    ready: bool = False
    failed: Failed | None = None  # its last word
    killed_for: str = ""  # why it was killed; empty: nobody here did
    kill_at: float | None = None  # seconds; it said its last word and should be gone by then
    cause: str = ""  # of its end, in a word or two

    @property
    def serves(self) -> bool:
        """Whether it does its work."""
        return self.alive and self.ready

    def exit_code(self, returncode: int) -> int:
        """What the engine's exit code is if this end ends it."""
        code = self.failed.exit_code if self.failed is not None else returncode
        return code if code > 0 else ExitCode.CRASHED

    def ended(self, returncode: int) -> None:
        """Its process is gone."""
        self.alive, self.kill_at = False, None
        if self.failed is not None:
            self.cause = "failed"
        elif self.killed_for:
            self.cause = "made no progress"
        else:
            self.cause = f"exit code {returncode}" if returncode >= 0 else _signal_name(returncode)

    def obituary(self, returncode: int) -> str:
        """Its end in a sentence. `returncode`: exit code, or the negated signal."""
        if self.failed is not None:
            return f"{self.child}: {self.failed.message}"
        if self.killed_for:
            return f"{self.child} was killed: {self.killed_for}"
        if returncode >= 0:
            return f"{self.child} ended with exit code {returncode}"
        hint = " (if nobody sent it, the system may be out of memory)" if returncode == -signal.SIGKILL else ""
        return f"{self.child} was killed by {_signal_name(returncode)}{hint}"


def _signal_name(returncode: int) -> str:
    return signal.Signals(-returncode).name if -returncode in signal.valid_signals() else f"signal {-returncode}"
