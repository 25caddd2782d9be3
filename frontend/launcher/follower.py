"""What the launcher decides on a host of a rank behind the first: events in, commands out, as in `supervisor`.

There is one child. It ends when any rank does, and is started again, since all of them begin anew. It ends for good when rank 0
says so, or for a cause that a restart does not mend.
"""

import signal

from frontend.launcher.events import (
    Announce,
    Begin,
    Child,
    Command,
    Event,
    Exit,
    Exited,
    Looked,
    Said,
    Say,
    Send,
    Show,
    Signal,
    Spawn,
    Status,
    Stopping,
    StopRequested,
    Tick,
)
from frontend.launcher.incarnation import Incarnation
from frontend.launcher.liveness import Limits, Liveness
from frontend.launcher.phase import EXIT_GRACE, KILL_GRACE, TERM_GRACE, Phase
from frontend.launcher.restart import RestartPolicy
from frontend.restarts import Restarts
from protocol.errors import ExitCode
from protocol.messages import ChildToLauncher, Drain, Failed, Progress, Pulse, Ready

_MENDABLE = (ExitCode.CRASHED, ExitCode.RANK_LOST)  # by a restart


class FollowerSupervisor:
    """The state of the one child."""

    def __init__(self, rank: int, restart_delay: float, max_restarts: int, limits: Limits) -> None:
        """As `Supervisor`; `rank`: of this host."""
        self.phase = Phase.NEW
        self.exit_code = ExitCode.OK
        self.restarts: Restarts = {}
        self._child = Child("follower", rank)
        self._restart = RestartPolicy(restart_delay, max(1, max_restarts // 2))  # as a worker's, with which it lives and dies
        self._limits = limits
        self._life: Incarnation | None = None
        self._deadline: float | None = None  # of the end
        self._out: list[Command] = []

    def handle(self, event: Event, now: float) -> list[Command]:
        """The commands that follow from `event` at `now` (seconds), in order."""
        life = self._life if self._life is not None and self._life.alive else None
        match event:
            case Begin():
                self.phase = Phase.STARTING
                self._spawn(now)
            case Said(_, epoch, message) if life is not None and life.epoch == epoch:
                self._said(life, message, now)
            case Exited(_, epoch, returncode) if life is not None and life.epoch == epoch:
                self._exited(life, returncode, now)
            case StopRequested():
                self._stop(life, now)
            case Tick():
                self._tick(life, now)
            case Looked(stopped) if life is not None:
                self._looked(life, now, stopped=self._child in stopped)
        commands = self._out.copy()
        self._out.clear()
        return commands

    def all_moved_since(self, time: float) -> bool:
        """Whether the child, if it does its work, got on since then (seconds)."""
        return self._life is None or not self._life.serves or self._life.liveness.moved_since(time)

    def next_deadline(self) -> float | None:
        """When `Tick` is due (seconds), if at all."""
        times = (self._deadline, self._restart.due, self._life.kill_at if self._life is not None else None)
        return min((time for time in times if time is not None), default=None)

    def validate(self) -> None:
        """Raises AssertionError when the state contradicts itself."""
        alive = self._life is not None and self._life.alive
        if self.phase in (Phase.STARTING, Phase.SERVING):
            assert alive != (self._restart.due is not None), "the child is neither there nor due, or both"
        else:
            assert self._restart.due is None, "a child is started that should not be"
        assert (self._deadline is not None) == self.phase.has_deadline

    def _spawn(self, now: float) -> None:
        epoch = 0
        if self._life is not None:
            epoch = self._life.epoch + 1
            causes = self.restarts.setdefault(str(self._child), {})
            causes[self._life.cause] = causes.get(self._life.cause, 0) + 1
        self._life = Incarnation(self._child, epoch, Liveness(now))
        self._restart.due = None
        self._out.append(Spawn(self._child, epoch))

    def _said(self, life: Incarnation, message: ChildToLauncher, now: float) -> None:
        life.liveness.moved(now)
        match message:
            case Pulse(phase, count):
                life.liveness.moved(now, f"{phase} after {count} calls")
            case Progress(phase):
                life.liveness.moved(now, phase)
                self._out.append(Show(self._child, message))
            case Ready(facts):
                life.ready = True
                self._out.append(Show(self._child, None))
                if self.phase is Phase.STARTING:
                    self.phase = Phase.SERVING
                    self._out.append(Announce(facts))
                elif self.phase is Phase.SERVING:
                    self._out += [Say(f"{self._child} is back (epoch {life.epoch})"), Status("following rank 0")]
            case Failed():
                life.failed = message
                life.kill_at = now + TERM_GRACE

    def _looked(self, life: Incarnation, now: float, *, stopped: bool) -> None:
        """Ends the child if it does not get on."""
        if not stopped:
            life.liveness.ran(now)
        limit = self._limits.silence(ready=life.ready)
        why = life.liveness.stopped(now, self._limits) or life.liveness.silent(now, limit)
        if why and not life.killed_for and self.phase in (Phase.STARTING, Phase.SERVING):
            life.killed_for = why
            self._out.append(Signal(self._child, signal.SIGKILL))

    def _exited(self, life: Incarnation, returncode: int, now: float) -> None:
        life.ended(returncode)
        if self.phase.has_deadline:
            self._end()
            return
        if returncode == ExitCode.OK:
            self._out.append(Say("rank 0 ended, and so does this one"))
            self._end()
            return
        code, obituary = life.exit_code(returncode), life.obituary(returncode)
        if code not in _MENDABLE:
            self._give_up(code, obituary)
            return
        delay = self._restart.died(now, was_ready=life.ready)
        if self._restart.is_crash_loop:
            self._restart.due = None
            self._give_up(code, f"{self._child} {self._restart.describe()}, so this host gives up; last: {obituary}")
            return
        self._out.append(Say(f"{obituary}; starting it again" + (f" in {delay:g} s" if delay else "")))
        if self.phase is Phase.SERVING:
            self._out.append(Status("starting again, with all other ranks"))
        self._tick(None, now)

    def _give_up(self, code: int, text: str) -> None:
        self.exit_code = code
        self._out.append(Say(text))
        self._end()

    def _stop(self, life: Incarnation | None, now: float) -> None:
        self._restart.due = None
        if life is None:
            self._end()
        elif life.ready and not self.phase.has_deadline:
            self.phase, self._deadline = Phase.DRAINING_WORKERS, now + EXIT_GRACE
            self._out += [
                Stopping(),
                Say("stopping: the worker of all hosts ends, and waits for this one"),
                Send(self._child, Drain()),
            ]
        else:
            self._kill(now)

    def _kill(self, now: float) -> None:
        if not self.phase.has_deadline:
            self._out.append(Stopping())
        self.phase, self._deadline = Phase.KILLING, now + KILL_GRACE
        self._out.append(Signal(self._child, signal.SIGKILL))

    def _tick(self, life: Incarnation | None, now: float) -> None:
        if life is not None and life.kill_at is not None and now >= life.kill_at:
            life.kill_at = None
            self._out.append(Signal(self._child, signal.SIGKILL))
        if self._restart.due is not None and now >= self._restart.due:
            self._spawn(now)
        if self._deadline is None or now < self._deadline:
            return
        if self.phase is Phase.KILLING:
            self._give_up(ExitCode.CRASHED, f"the kernel does not end this killed process: {self._child}")
        else:
            self._kill(now)

    def _end(self) -> None:
        self.phase, self._deadline = Phase.ENDED, None
        self._out.append(Exit(self.exit_code))
