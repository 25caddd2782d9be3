"""What the supervisor hears and what it answers: its events and commands."""

import signal
from dataclasses import dataclass
from typing import Literal, TypeAlias

from protocol.messages import ChildToLauncher, LauncherToChild, Progress

Role: TypeAlias = Literal["frontend", "scheduler", "worker", "grammar", "follower"]


@dataclass(frozen=True, slots=True, order=True)
class Child:
    """One place in the engine; a process that replaces another is the same child with a higher epoch."""

    role: Role
    index: int = 0

    def __str__(self) -> str:
        return f"{self.role} {self.index}" if self.role == "worker" or self.index else self.role


FRONTEND = Child("frontend")  # the first, and mostly the only one
SCHEDULER = Child("scheduler")
GRAMMAR = Child("grammar")


# events


@dataclass(frozen=True, slots=True)
class Begin:
    """Start the engine."""


@dataclass(frozen=True, slots=True)
class Said:
    """A child's message, of incarnation `epoch`."""

    child: Child
    epoch: int
    message: ChildToLauncher


@dataclass(frozen=True, slots=True)
class Exited:
    """A child's process ended: exit code, or the negated signal. All it had said was handled before."""

    child: Child
    epoch: int
    returncode: int


@dataclass(frozen=True, slots=True)
class StopRequested:
    """SIGINT or SIGTERM."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed; sent at `next_deadline` at the latest."""


@dataclass(frozen=True, slots=True)
class Looked:
    """The kernel was asked about every living child, as it is several times within each limit of liveness."""

    stopped: frozenset[Child] = frozenset()  # those that a signal stopped: they cannot run


Event: TypeAlias = Begin | Said | Exited | StopRequested | Tick | Looked


# commands


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a process for `child`."""

    child: Child
    epoch: int
    session: int = 0  # which life of the scheduler it meets


@dataclass(frozen=True, slots=True)
class Send:
    """Send `message` on the child's supervision link."""

    child: Child
    message: LauncherToChild


@dataclass(frozen=True, slots=True)
class Signal:
    """Send a signal to the child's process."""

    child: Child
    signum: signal.Signals


@dataclass(frozen=True, slots=True)
class Show:
    """Start-up progress of a child; None: it is done."""

    child: Child
    progress: Progress | None


@dataclass(frozen=True, slots=True)
class Announce:
    """The engine is ready."""

    facts: dict[str, str | int]


@dataclass(frozen=True, slots=True)
class Say:
    """A line for the operator."""

    text: str


@dataclass(frozen=True, slots=True)
class Status:
    """How the engine is, for the service manager: replaces what it was told before."""

    text: str


@dataclass(frozen=True, slots=True)
class Stopping:
    """The engine leaves service, for whatever reason."""


@dataclass(frozen=True, slots=True)
class Exit:
    """All children are gone: leave with this code."""

    code: int


Command: TypeAlias = Spawn | Send | Signal | Show | Announce | Say | Status | Stopping | Exit
