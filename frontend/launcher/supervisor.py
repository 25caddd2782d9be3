"""What the launcher decides: events in, commands out. No processes, no sockets, no clock in here.

Start: every child at once; the engine is ready when the frontend says so. A worker that dies after that is replaced; the death of
the scheduler or the frontend, and any death before ready, ends the engine. A stop drains the frontend, then the scheduler,
then the workers; a second request stops all of them at once.
"""

import signal
from dataclasses import dataclass, field
from enum import Enum

from frontend.launcher.events import (
    FRONTEND,
    SCHEDULER,
    Announce,
    Begin,
    Child,
    Command,
    Event,
    Exit,
    Exited,
    Said,
    Say,
    Send,
    Show,
    Signal,
    Spawn,
    Stopping,
    StopRequested,
    Tick,
)
from frontend.launcher.restart import RestartPolicy
from protocol.errors import ExitCode
from protocol.messages import ChildToLauncher, Drain, Failed, Progress, Ready, WorkerHung, WorkerLost

DRAIN_MARGIN = 5.0  # seconds beyond the drain timeout for the frontend to close its connections
EXIT_GRACE = 5.0  # seconds for an idle scheduler or worker to leave when asked
TERM_GRACE = 3.0  # seconds between SIGTERM and SIGKILL
KILL_GRACE = 10.0  # seconds for the kernel to end a killed process; a driver call may hold it


class Phase(Enum):
    """Where the engine stands. It only moves forward."""

    NEW = 0
    STARTING = 1
    SERVING = 2
    DRAINING_FRONTEND = 3
    DRAINING_SCHEDULER = 4
    DRAINING_WORKERS = 5
    STOPPING = 6  # SIGTERM was sent to all
    KILLING = 7  # SIGKILL was sent to all
    ENDED = 8


@dataclass(slots=True)
class _State:
    epoch: int = -1
    alive: bool = False
    ready: bool = False
    failed: Failed | None = None
    hung: str = ""  # why the scheduler had it killed
    dismissed: bool = False  # killed because it was no longer needed: its exit code means nothing
    kill_at: float | None = None  # it said its last words and should be gone by then
    spawn_at: float | None = None
    policy: RestartPolicy = field(default_factory=RestartPolicy)


class Supervisor:
    """The state of one engine's processes."""

    def __init__(self, *, workers: int, drain_timeout: float) -> None:
        """`drain_timeout`: seconds that the frontend gives running requests after a stop request."""
        self.phase = Phase.NEW
        self.exit_code = ExitCode.OK
        self._drain_timeout = drain_timeout
        self._workers = [Child("worker", index) for index in range(workers)]
        self._states = {child: _State() for child in (*self._workers, SCHEDULER, FRONTEND)}  # the slowest to start come first
        self._deadline: float | None = None  # end of the current draining or stopping phase
        self._out: list[Command] = []

    def handle(self, event: Event, now: float) -> list[Command]:
        """The commands that follow from `event` at `now` (seconds), in order."""
        match event:
            case Begin():
                self.phase = Phase.STARTING
                for child in self._states:
                    self._spawn(child)
            case Said(child, epoch, message):
                if epoch == self._states[child].epoch and self._states[child].alive:
                    self._said(child, message, now)
            case Exited(child, epoch, returncode):
                if epoch == self._states[child].epoch and self._states[child].alive:
                    self._exited(child, returncode, now)
            case StopRequested():
                self._stop_requested(now)
            case Tick():
                self._tick(now)
        commands, self._out = self._out, []
        return commands

    def next_deadline(self) -> float | None:
        """When `Tick` is due (seconds), if at all."""
        times = [self._deadline]
        for state in self._states.values():
            times += [state.kill_at, state.spawn_at]
        return min((time for time in times if time is not None), default=None)

    def validate(self) -> None:
        """Raises AssertionError when the state contradicts itself."""
        states = self._states.values()
        for state in states:
            assert not (state.alive and state.spawn_at is not None), "a living child waits to be started"
            assert state.alive or state.kill_at is None, "a dead child waits to be killed"
        if self.phase.value > Phase.DRAINING_FRONTEND.value:
            assert all(state.spawn_at is None for state in states), "a child would be started during the stop"
        if self.phase is Phase.STARTING:
            assert all(state.alive for state in states), "a death during the start was overlooked"
        if self.phase in (Phase.SERVING, Phase.DRAINING_FRONTEND):
            assert all(self._states[child].alive for child in (SCHEDULER, FRONTEND)), "a fatal death was overlooked"
            assert all(self._states[worker].alive or self._states[worker].spawn_at is not None for worker in self._workers)
        assert (self._deadline is not None) == (Phase.DRAINING_FRONTEND.value <= self.phase.value <= Phase.KILLING.value)

    def _spawn(self, child: Child) -> None:
        old = self._states[child]
        self._states[child] = _State(epoch=old.epoch + 1, alive=True, policy=old.policy)
        self._out.append(Spawn(child, old.epoch + 1))

    def _said(self, child: Child, message: ChildToLauncher, now: float) -> None:
        state = self._states[child]
        match message:
            case Progress():
                self._out.append(Show(child, message))
            case Ready(facts):
                state.ready = True
                self._out.append(Show(child, None))
                if child == FRONTEND and self.phase is Phase.STARTING:
                    self.phase = Phase.SERVING
                    self._out.append(Announce(facts))
                elif child.role == "worker" and state.epoch > 0:
                    self._out.append(Say(f"{child} is back (epoch {state.epoch})"))
            case Failed(exit_code, text):
                state.failed = message
                if self.phase is Phase.STARTING or (self._in_service() and child.role != "worker"):
                    self._fail(exit_code or ExitCode.CRASHED, f"{child}: {text}", now)
                else:
                    state.kill_at = now + TERM_GRACE
            case WorkerHung(index, epoch, text):
                worker = Child("worker", index)
                hung = self._states.get(worker)
                if child == SCHEDULER and hung is not None and hung.alive and hung.epoch == epoch and self._in_service():
                    hung.hung = text
                    self._out.append(Signal(worker, signal.SIGKILL))

    def _exited(self, child: Child, returncode: int, now: float) -> None:
        state = self._states[child]
        state.alive, state.kill_at = False, None
        if self.phase in (Phase.STOPPING, Phase.KILLING):
            self._end_if_alone()
        elif self._in_service() and child.role == "worker":
            self._worker_lost(child, returncode, now)
        elif self.phase in (Phase.STARTING, Phase.SERVING):
            self._fail(self._code(child, returncode), self._obituary(child, returncode), now)
        elif (returncode != 0 and not state.dismissed) or (self.phase is Phase.DRAINING_FRONTEND and child == SCHEDULER):
            self._fail(self._code(child, returncode), self._obituary(child, returncode) + " while the engine drained", now)
        else:
            self._drained(child, now)

    def _worker_lost(self, child: Child, returncode: int, now: float) -> None:
        state = self._states[child]
        self._out.append(Send(SCHEDULER, WorkerLost(child.index, state.epoch)))
        delay = state.policy.died(now, was_ready=state.ready)
        obituary = self._obituary(child, returncode)
        if delay is None:
            code = state.failed.exit_code if state.failed is not None else ExitCode.CRASHED
            self._fail(
                code or ExitCode.CRASHED, f"{child} {state.policy.describe()}, so the engine gives up; last: {obituary}", now
            )
            return
        state.spawn_at = now + delay
        self._out.append(Say(f"{obituary}; starting it again" + (f" in {delay:.0f} s" if delay else "")))
        self._tick(now)

    def _drained(self, child: Child, now: float) -> None:
        if self.phase is Phase.DRAINING_FRONTEND and child == FRONTEND:
            for worker in self._workers:
                self._states[worker].spawn_at = None
            self.phase, self._deadline = Phase.DRAINING_SCHEDULER, now + EXIT_GRACE
            self._out.append(Send(SCHEDULER, Drain()))
        elif self.phase is Phase.DRAINING_SCHEDULER and child == SCHEDULER:
            self.phase, self._deadline = Phase.DRAINING_WORKERS, now + EXIT_GRACE
            for worker in self._workers:
                if self._states[worker].alive:
                    # One that is still loading or compiling reads no messages; nothing is lost with it.
                    self._states[worker].dismissed = not self._states[worker].ready
                    self._out.append(Send(worker, Drain()) if self._states[worker].ready else Signal(worker, signal.SIGKILL))
        if self.phase is Phase.DRAINING_WORKERS:
            self._end_if_alone()

    def _stop_requested(self, now: float) -> None:
        if self.phase is Phase.STARTING:
            self._out.append(Say("stopping before the engine was ready"))
            self._stop_all(now)
        elif self.phase is Phase.SERVING:
            self.phase, self._deadline = Phase.DRAINING_FRONTEND, now + self._drain_timeout + DRAIN_MARGIN
            limit = f"for up to {self._drain_timeout:.0f} s; a second signal stops at once"
            self._out += [Stopping(), Say(f"finishing the running requests {limit}"), Send(FRONTEND, Drain())]
        elif self.phase is Phase.STOPPING:
            self._kill_all(now)
        elif self.phase.value < Phase.STOPPING.value:
            self._stop_all(now)

    def _tick(self, now: float) -> None:
        for child, state in self._states.items():
            if state.kill_at is not None and now >= state.kill_at:
                state.kill_at = None
                self._out.append(Signal(child, signal.SIGKILL))
            if state.spawn_at is not None and now >= state.spawn_at:
                self._spawn(child)
        if self._deadline is None or now < self._deadline:
            return
        alive = ", ".join(str(child) for child, state in self._states.items() if state.alive)
        if self.phase is Phase.STOPPING:
            self._kill_all(now)
        elif self.phase is Phase.KILLING:
            self._out.append(Say(f"the kernel does not end these killed processes: {alive}"))
            self.exit_code = self.exit_code or ExitCode.CRASHED
            self._end()
        else:
            self._fail(ExitCode.CRASHED, f"still running at the end of the time to drain: {alive}", now)

    def _in_service(self) -> bool:
        return self.phase in (Phase.SERVING, Phase.DRAINING_FRONTEND)

    def _fail(self, code: int, text: str, now: float) -> None:
        """The first cause keeps its code; what follows from it is not worth a line."""
        if self.phase.value < Phase.STOPPING.value:
            self.exit_code = self.exit_code or code
            self._out.append(Say(text))
            self._stop_all(now)

    def _stop_all(self, now: float) -> None:
        if self.phase in (Phase.STARTING, Phase.SERVING):
            self._out.append(Stopping())
        self.phase, self._deadline = Phase.STOPPING, now + TERM_GRACE
        self._signal_all(signal.SIGTERM)

    def _kill_all(self, now: float) -> None:
        self.phase, self._deadline = Phase.KILLING, now + KILL_GRACE
        self._signal_all(signal.SIGKILL)

    def _signal_all(self, signum: signal.Signals) -> None:
        for child, state in self._states.items():
            state.kill_at = state.spawn_at = None
            if state.alive:
                self._out.append(Signal(child, signum))
        self._end_if_alone()

    def _end_if_alone(self) -> None:
        if not any(state.alive for state in self._states.values()):
            self._end()

    def _end(self) -> None:
        self.phase, self._deadline = Phase.ENDED, None
        self._out.append(Exit(self.exit_code))

    def _code(self, child: Child, returncode: int) -> int:
        failed = self._states[child].failed
        code = failed.exit_code if failed is not None else returncode
        return code if code > 0 else ExitCode.CRASHED

    def _obituary(self, child: Child, returncode: int) -> str:
        state = self._states[child]
        if state.failed is not None:
            return f"{child}: {state.failed.message}"
        if state.hung:
            return f"{child} made no progress and was killed: {state.hung}"
        if returncode >= 0:
            return f"{child} ended with exit code {returncode}"
        name = signal.Signals(-returncode).name if -returncode in signal.valid_signals() else f"signal {-returncode}"
        hint = " (if nobody sent it, the system may be out of memory)" if returncode == -signal.SIGKILL else ""
        return f"{child} was killed by {name}{hint}"
