"""The scheduler's only I/O: waits, reads every pipe, lets the state decide, sends what it says."""

from protocol.channel import Poller, Receiver, Sender
from protocol.clock import now_ns
from protocol.config import ChildSpec
from protocol.endpoints import (
    GRAMMAR_INBOX,
    GRAMMAR_OUTBOX,
    SCHEDULER_INBOX,
    frontend_inbox,
    ipc_address,
    session_dir,
    worker_inbox,
    worker_outbox,
)
from protocol.grammar_messages import GRAMMAR_TO_SCHEDULER, GrammarToScheduler
from protocol.logs import set_level
from protocol.messages import (
    FRONTEND_TO_SCHEDULER,
    WORKER_TO_SCHEDULER,
    Drain,
    FrontendLost,
    FrontendToScheduler,
    LauncherToChild,
    Pulse,
    Ready,
    Reload,
    WorkerLost,
    WorkerToScheduler,
)
from protocol.pulse import Metronome
from protocol.supervision import SupervisionLink
from scheduler_proc.breaches import Breach
from scheduler_proc.events import Command, Event, FromWorker, MasksToWorker, Prepare, ToFrontend, ToGrammar, ToLauncher, ToWorker
from scheduler_proc.intake import Intake
from scheduler_proc.invariants import validate_idle
from scheduler_proc.state import SchedulerState

_READ_PER_TURN = 256  # messages of the frontends, some milliseconds: faster than they are written
_TAKEN_IN_PER_TURN = 16  # requests: their prompts are named when they are admitted, a millisecond for 6,000 tokens


class SchedulerLoop:
    """Owns the sockets of the scheduler process."""

    def __init__(self, spec: ChildSpec, launcher: SupervisionLink[LauncherToChild]) -> None:
        config, directory = spec.config, session_dir(spec.run_dir, spec.session)
        self._state = SchedulerState(config, session=spec.session)
        self._launcher = launcher
        self._intake = Intake()
        self._from_frontend: Receiver[FrontendToScheduler] = Receiver(
            ipc_address(directory, SCHEDULER_INBOX), FRONTEND_TO_SCHEDULER, bind=True
        )
        self._to_frontends = [
            Sender(ipc_address(directory, frontend_inbox(index)), bind=False) for index in range(config.frontends)
        ]
        self._from_grammar: Receiver[GrammarToScheduler] = Receiver(
            ipc_address(directory, GRAMMAR_OUTBOX), GRAMMAR_TO_SCHEDULER, bind=True
        )
        self._to_grammar = Sender(ipc_address(directory, GRAMMAR_INBOX), bind=False)
        self._from_workers: list[Receiver[WorkerToScheduler]] = []
        self._to_workers: list[Sender] = []
        for index in range(config.workers):
            self._from_workers.append(Receiver(ipc_address(directory, worker_outbox(index)), WORKER_TO_SCHEDULER, bind=True))
            self._to_workers.append(Sender(ipc_address(directory, worker_inbox(index)), bind=False))
        self._poller = Poller()
        self._poller.watch(launcher.fileno())
        self._poller.watch(self._from_frontend)
        self._poller.watch(self._from_grammar)
        for receiver in self._from_workers:
            self._poller.watch(receiver)
        self._tick = config.pulse_interval
        self._metronome = Metronome(self._tick)
        self._num_events = 0
        self._draining = False
        self._busy_ns = 0

    def run(self) -> None:
        """Serves until the launcher says drain, or is gone."""
        self._launcher.send(Ready())
        checked = True  # whether the state was validated since the last event
        while not (self._draining or self._launcher.closed):
            ready = self._poller.wait(0 if len(self._intake) else self._tick)
            began = now_ns()
            events = self._read(ready)
            # The time after reading: what arrived while the pipes were read was not taken in before it was there.
            self._execute(self._state.handle(events, now_ns()))
            ended = now_ns()
            self._busy_ns += ended - began
            self._num_events += len(events)
            if self._metronome.is_due(ended):
                self._pulse()
            if events:
                checked = False
            elif self._state.idle and not checked:
                self._validate()
                checked = True
            self._state.counters["scheduler_busy_ns"] = self._busy_ns

    def close(self) -> None:
        """Closes every socket."""
        self._from_frontend.close()
        self._from_grammar.close()
        for receiver in self._from_workers:
            receiver.close()
        for sender in (*self._to_frontends, self._to_grammar, *self._to_workers):
            sender.close()

    def _validate(self) -> None:
        try:
            validate_idle(self._state)
        except Breach as breach:
            self._state.breaches.report(breach)

    def _pulse(self) -> None:
        """Tells launcher and frontends that this loop goes round, and the frontends where the engine stands."""
        pulse, stats = Pulse("idle" if self._state.idle else "running", self._num_events), self._state.stats()
        self._launcher.flush()
        self._launcher.send(pulse)
        for sender in self._to_frontends:
            sender.send(pulse)
            sender.send(stats)

    def _read(self, ready: list[object]) -> list[Event]:
        events: list[Event] = []
        if self._launcher.fileno() in ready:
            while (order := self._launcher.receive()) is not None:
                match order:
                    case Drain():
                        self._draining = True
                    case Reload():
                        set_level(order.log_level)
                    case WorkerLost() | FrontendLost():
                        events.append(order)
        if self._from_frontend in ready:
            events += self._intake.put(self._from_frontend.receive_some(_READ_PER_TURN))
        events += self._intake.take(_TAKEN_IN_PER_TURN)
        if self._from_grammar in ready:
            events += self._from_grammar.receive_some()
        for worker, receiver in enumerate(self._from_workers):
            if receiver in ready:
                while (answer := receiver.receive()) is not None:
                    events.append(FromWorker(worker, answer))
        self._state.counters["malformed_frames"] = (
            self._from_frontend.malformed
            + self._from_grammar.malformed
            + sum(receiver.malformed for receiver in self._from_workers)
        )
        return events

    def _execute(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case ToWorker(worker, message, step):
                    self._to_workers[worker].send(message)
                    step.sent_ns = now_ns()
                case MasksToWorker(worker, masks):
                    self._to_workers[worker].send(masks)
                case ToGrammar(word):
                    self._to_grammar.send(word)
                case Prepare(worker, order):
                    self._to_workers[worker].send(order)
                case ToFrontend(reply, frontend):
                    self._to_frontends[frontend].send(reply)
                case ToLauncher(report):
                    self._launcher.send(report)
