"""What goes into the scheduler's state and what comes out of it."""

from dataclasses import dataclass

from protocol.grammar_messages import GrammarToScheduler, SchedulerToGrammar
from protocol.messages import (
    FrontendLost,
    FrontendToScheduler,
    PrepareScores,
    SchedulerOutput,
    SchedulerToFrontend,
    StepMasks,
    WorkerHung,
    WorkerLost,
    WorkerToScheduler,
)
from scheduler_proc.in_flight import InFlightStep


@dataclass(frozen=True, slots=True)
class FromWorker:
    """Event: a message came out of a worker's pipe."""

    worker: int
    message: WorkerToScheduler


Event = FrontendToScheduler | FromWorker | WorkerLost | FrontendLost | GrammarToScheduler


@dataclass(frozen=True, slots=True)
class ToWorker:
    """Command: send this step. The sender notes the time in `step.sent_ns`."""

    worker: int
    message: SchedulerOutput
    step: InFlightStep


@dataclass(frozen=True, slots=True)
class MasksToWorker:
    """Command: send these masks, of rows that the grammar process does not serve."""

    worker: int
    message: StepMasks


@dataclass(frozen=True, slots=True)
class ToGrammar:
    """Command: send this message to the grammar process."""

    message: SchedulerToGrammar


@dataclass(frozen=True, slots=True)
class Prepare:
    """Command: send this message to a worker."""

    worker: int
    message: PrepareScores


@dataclass(frozen=True, slots=True)
class ToFrontend:
    """Command: send this message to a frontend."""

    message: SchedulerToFrontend
    frontend: int = 0


@dataclass(frozen=True, slots=True)
class ToLauncher:
    """Command: ask for the replacement of a worker."""

    message: WorkerHung


Command = ToWorker | MasksToWorker | Prepare | ToGrammar | ToFrontend | ToLauncher
