"""What the launcher decides: events in, commands out. No processes, no sockets, no clock in here.

Start: every child at once, but for the grammar process, which is started when the engine is ready, as it is when its frontends say
so. A worker that dies after that is replaced, for as long as one can be kept alive, and so is a frontend while another serves, and
the grammar process always; the death of the scheduler or the last frontend, and any failure before ready, ends the engine. A child
that does not get on is killed, which is a death like any other. A stop drains the frontends, then the scheduler, then the others; a
second request stops all of them at once.
"""

import signal

from frontend.launcher.events import (
    FRONTEND,
    GRAMMAR,
    SCHEDULER,
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
    Status,
    Stopping,
    StopRequested,
    Tick,
)
from frontend.launcher.incarnation import Incarnation
from frontend.launcher.liveness import Limits
from frontend.launcher.lives import Lives
from frontend.launcher.phase import DRAIN_MARGIN, EXIT_GRACE, KILL_GRACE, LAST_WORDS, STOP_GRACE, STOP_WORDS, TERM_GRACE, Phase
from frontend.restarts import Restarts
from protocol.config import DEFAULT_MAX_RESTARTS
from protocol.errors import ExitCode
from protocol.messages import ChildToLauncher, Drain, Failed, FrontendLost, Progress, Pulse, Ready, Stop, WorkerHung, WorkerLost

_STOPPED = "the engine was stopped before the answer was complete"  # what clients are told
_NOT_NEEDED = "it was not needed any more"
_FAILED = "the engine failed before the answer was complete"


class Supervisor:
    """The state of one engine's processes."""

    def __init__(
        self,
        *,
        workers: int,
        drain_timeout: float,
        restart_delay: float,
        limits: Limits,
        frontends: int = 1,
        max_restarts: int = DEFAULT_MAX_RESTARTS,
    ) -> None:
        """`drain_timeout`: seconds that a frontend gives running requests after a stop request. `restart_delay`: seconds before a
        child that dies again is started again, the first time. `max_restarts`: of the scheduler, see RestartPolicy."""
        self.phase = Phase.NEW
        self.exit_code = ExitCode.OK
        self._drain_timeout = drain_timeout
        self._limits = limits
        self._out: list[Command] = []
        self._lives = Lives(workers, frontends, restart_delay, max_restarts, self._out)
        self._deadline: float | None = None  # end of the current draining or stopping phase
        self._facts: dict[str, str | int] = {}  # of the first frontend's hello

    def handle(self, event: Event, now: float) -> list[Command]:
        """The commands that follow from `event` at `now` (seconds), in order."""
        match event:
            case Begin():
                self.phase = Phase.STARTING
                self._lives.begin_all(now)
            case Said(child, epoch, message):
                if (life := self._lives.find(child, epoch)) is not None:
                    self._said(life, message, now)
            case Exited(child, epoch, returncode):
                if (life := self._lives.find(child, epoch)) is not None:
                    self._exited(life, returncode, now)
            case StopRequested():
                self._stop_requested(now)
            case Tick():
                self._tick(now)
            case Looked(stopped):
                self._looked(stopped, now)
        commands = self._out.copy()
        self._out.clear()
        return commands

    def all_moved_since(self, time: float) -> bool:
        """Whether every child that does its work got on since then (seconds). Who still starts is deaf for minutes, with a limit
        of its own.
        """
        return all(life.liveness.moved_since(time) for life in self._lives.alive() if life.ready)

    @property
    def restarts(self) -> Restarts:
        """How often each child was started again, by the cause of the end before."""
        return self._lives.restarts

    def next_deadline(self) -> float | None:
        """When `Tick` is due (seconds), if at all."""
        times = (self._deadline, self._lives.next_deadline())
        return min((time for time in times if time is not None), default=None)

    def validate(self) -> None:
        """Raises AssertionError when the state contradicts itself."""
        watched = self.phase is Phase.STARTING or self.phase.in_service
        self._lives.validate(workers_replaced=watched, frontends_replaced=self.phase is Phase.SERVING)
        living = [self._lives[child].alive for child in self._lives.frontends]
        if self.phase is Phase.STARTING:
            assert self._lives[SCHEDULER].alive and all(living), "a fatal death was overlooked"
        if self.phase is Phase.DRAINING_FRONTEND:
            assert any(living), "nobody is left who could finish anything"
        assert (self._deadline is not None) == self.phase.has_deadline

    # what children say, and do not say

    def _said(self, life: Incarnation, message: ChildToLauncher, now: float) -> None:
        life.liveness.moved(now)
        match message:
            case Pulse(phase, count):
                life.liveness.moved(now, f"{phase} after {count} {'steps' if life.child.role == 'worker' else 'events'}")
            case Progress(phase):
                life.liveness.moved(now, phase)
                self._out.append(Show(life.child, message))
            case Ready(facts):
                life.ready = True
                self._out.append(Show(life.child, None))
                if life.child == FRONTEND:
                    self._facts = facts
                if life.epoch > 0:
                    self._out.append(Say(f"{life.child} is back (epoch {life.epoch})"))
                    self._tell_status()
                elif self.phase is Phase.STARTING and all(self._lives[child].ready for child in self._lives.frontends):
                    self.phase = Phase.SERVING
                    self._out.append(Announce(self._facts))
                    self._lives.begin_grammar(now)
            case Failed(exit_code, text):
                life.failed = message
                if self.phase is Phase.STARTING or self._is_vital(life.child):
                    self._fail(exit_code or ExitCode.CRASHED, f"{life.child}: {text}", now)
                else:
                    life.kill_at = now + TERM_GRACE
            case WorkerHung(index, epoch, text):
                hung = self._lives.find(Child("worker", index), epoch)
                if life.child == SCHEDULER and hung is not None and self.phase.in_service:
                    self._lives.kill(hung, text)

    def _looked(self, stopped: frozenset[Child], now: float) -> None:
        """Ends what does not get on. The end of the engine has deadlines of its own, but what is stopped will not keep them."""
        for life in self._lives.alive():
            if life.child not in stopped:
                life.liveness.ran(now)
            elif Phase.DRAINING_FRONTEND < self.phase:
                self._lives.kill(life, "it was stopped by a signal")
            why_stopped = life.liveness.stopped(now, self._limits)
            why = why_stopped or life.liveness.silent(now, self._limits.silence(ready=life.ready))
            if not why or not (self.phase is Phase.STARTING or self.phase.in_service):
                continue
            self._lives.kill(life, why)
            # A worker that somebody stopped while it started is replaced; one that gets stuck by itself is a failed start.
            if self._is_vital(life.child) or (self.phase is Phase.STARTING and not why_stopped):
                self._fail(ExitCode.CRASHED, life.obituary(-signal.SIGKILL), now)

    # deaths

    def _exited(self, life: Incarnation, returncode: int, now: float) -> None:
        life.ended(returncode)
        obituary = life.obituary(returncode)
        if not self.phase < Phase.STOPPING:
            self._end_if_alone()
        elif life.child.role == "worker" and (self.phase.in_service or (self.phase is Phase.STARTING and life.killed_for)):
            self._worker_lost(life, returncode, now)
        elif life.child.role == "frontend" and (self.phase is Phase.SERVING or self._drains_without(life.child)):
            self._frontend_lost(life, returncode, now)
        elif life.child == SCHEDULER and self.phase.in_service:
            self._scheduler_lost(life, returncode, now)
        elif life.child == GRAMMAR and self.phase < Phase.DRAINING_WORKERS:
            self._grammar_lost(life, returncode, now)
        elif self.phase < Phase.DRAINING_FRONTEND:
            self._fail(life.exit_code(returncode), obituary, now)
        elif self.phase is Phase.DRAINING_FRONTEND and returncode != 0:
            self._fail(life.exit_code(returncode), f"{obituary} while the engine drained", now)
        else:
            if returncode != 0 and not life.killed_for:  # worth a line, but every request has had its end
                self._out.append(Say(f"{obituary} after the last request had ended"))
            self._drained(life.child, now)

    def _worker_lost(self, life: Incarnation, returncode: int, now: float) -> None:
        worker, obituary = life.child, life.obituary(returncode)
        self._out.append(Send(SCHEDULER, WorkerLost(worker.index, life.epoch, returncode, life.killed_for)))
        restarts = self._lives.workers
        restart, serving = restarts[worker], self._lives.num_serving()
        delay = restart.died(now, was_ready=life.ready)
        again = "starting it again" + (f" in {delay:g} s" if delay else "")
        if restart.is_crash_loop:
            if self.phase is Phase.STARTING or (not serving and all(other.is_crash_loop for other in restarts.values())):
                others = ", and no other can be kept alive" if self.phase.in_service and len(restarts) > 1 else ""
                text = f"{worker} {restart.describe()}{others}, so the engine gives up; last: {obituary}"
                self._fail(life.exit_code(returncode), text, now)
                return
            again = f"it {restart.describe()}, the engine serves on with {serving} of {len(restarts)} workers; {again}"
        self._out.append(Say(f"{obituary}; {again}"))
        self._tell_status()
        self._lives.tick(now)

    def _is_vital(self, child: Child) -> bool:
        """Whether the engine ends with it: while it starts, and in a drain with the last one that has requests to finish."""
        if self.phase is Phase.DRAINING_FRONTEND:
            return child.role == "frontend" and not self._drains_without(child)
        return self.phase is Phase.STARTING and child.role in ("frontend", "scheduler")

    def _drains_without(self, frontend: Child) -> bool:
        """Whether another one still finishes requests."""
        others = (self._lives[other] for other in self._lives.frontends if other != frontend)
        return self.phase is Phase.DRAINING_FRONTEND and any(other.serves for other in others)

    def _frontend_lost(self, life: Incarnation, returncode: int, now: float) -> None:
        """Its clients see their connections end; those of the others see nothing."""
        obituary = life.obituary(returncode)
        self._out.append(Send(SCHEDULER, FrontendLost(life.child.index, life.epoch)))
        if self.phase is Phase.SERVING:
            restart = self._lives.frontends[life.child]
            delay = restart.died(now, was_ready=life.ready)
            others = any(self._lives[other].serves for other in self._lives.frontends)
            if restart.is_crash_loop and not others:
                text = f"{life.child} {restart.describe()}, so the engine gives up; last: {obituary}"
                self._fail(life.exit_code(returncode), text, now)
                return
            meanwhile = "the others serve on" if others else "its clients see their connections end, and those who come wait"
            self._out.append(Say(f"{obituary}; {meanwhile}; starting it again" + (f" in {delay:g} s" if delay else "")))
            self._lives.tick(now)
        elif returncode != 0:
            self.exit_code = self.exit_code or life.exit_code(returncode)
            self._out.append(Say(f"{obituary} while the engine drained; the others go on"))

    def _scheduler_lost(self, life: Incarnation, returncode: int, now: float) -> None:
        """The frontends know every request with the tokens that came, the workers have the model: another scheduler goes on."""
        obituary, restart = life.obituary(returncode), self._lives.scheduler
        delay = restart.died(now, was_ready=life.ready)
        if restart.is_crash_loop:
            text = f"{life.child} {restart.describe()}, so the engine gives up; last: {obituary}"
            self._fail(life.exit_code(returncode), text, now)
            return
        again = "starting it again" + (f" in {delay:g} s" if delay else "")
        self._out.append(Say(f"{obituary}; the requests wait; {again}"))
        self._lives.tick(now)

    def _grammar_lost(self, life: Incarnation, returncode: int, now: float) -> None:
        """Structured outputs wait for its successor, and nothing else does."""
        obituary = life.obituary(returncode)
        if self.phase.in_service:
            delay = self._lives.grammar.died(now, was_ready=life.ready)
            again = "starting it again" + (f" in {delay:g} s" if delay else "")
            self._out.append(Say(f"{obituary}; structured outputs wait; {again}"))
            self._lives.tick(now)
        elif returncode != 0 and not life.killed_for:
            self._out.append(Say(f"{obituary} after the last request had ended"))

    def _tell_status(self) -> None:
        if self.phase is Phase.SERVING:
            serving, wanted = self._lives.num_serving(), len(self._lives.workers)
            degraded = f", degraded: {serving} of {wanted} workers" if serving < wanted else ""
            self._out.append(Status(f"serving {self._facts.get('model', '')}{degraded}"))

    # the end

    def _stop_requested(self, now: float) -> None:
        if self.phase is Phase.STARTING:
            self._out.append(Say("stopping before the engine was ready"))
            self._stop_all(_STOPPED, now)
        elif self.phase is Phase.SERVING:
            self.phase, self._deadline = Phase.DRAINING_FRONTEND, now + self._drain_timeout + LAST_WORDS + DRAIN_MARGIN
            limit = f"for up to {self._drain_timeout:.0f} s; a second signal stops at once"
            self._lives.settle_frontends()
            self._out += [Stopping(), Say(f"finishing the running requests {limit}")]
            frontends = [life.child for life in self._lives.alive() if life.child.role == "frontend"]
            self._out += [Send(frontend, Drain(LAST_WORDS)) for frontend in frontends]
            if not frontends:  # every request ended with them
                self._drained(FRONTEND, now)
        elif self.phase is Phase.STOPPING:
            self._kill_all(now)
        elif self.phase < Phase.STOPPING:
            self._stop_all(_STOPPED, now)

    def _drained(self, child: Child, now: float) -> None:
        if self.phase is Phase.DRAINING_FRONTEND and child.role == "frontend":
            self._lives.settle()
            self.phase, self._deadline = Phase.DRAINING_SCHEDULER, now + EXIT_GRACE
            self._out += [Send(other, Drain()) for other in (SCHEDULER, GRAMMAR) if self._lives.is_ready(other)]
            scheduler = self._lives[SCHEDULER]
            if not scheduler.alive:  # it died while the last requests ended without it, and no other is needed
                self._drained(SCHEDULER, now)
            elif not scheduler.ready:
                self._lives.kill(scheduler, _NOT_NEEDED)
        elif self.phase is Phase.DRAINING_SCHEDULER and child == SCHEDULER:
            self.phase, self._deadline = Phase.DRAINING_WORKERS, now + EXIT_GRACE
            for life in self._lives.alive():
                if life.ready:
                    self._out.append(Send(life.child, Drain()))
                else:  # it is loading or compiling and reads no messages; nothing is lost with it
                    self._lives.kill(life, _NOT_NEEDED)
        if self.phase is Phase.DRAINING_WORKERS:
            self._end_if_alone()

    def _tick(self, now: float) -> None:
        self._lives.tick(now)
        if self._deadline is None or now < self._deadline:
            return
        alive = ", ".join(str(life.child) for life in self._lives.alive())
        if self.phase is Phase.DRAINING_FRONTEND:
            self._fail(ExitCode.CRASHED, f"still running at the end of the time to drain: {alive}", now)
        elif self.phase is Phase.KILLING:
            self._out.append(Say(f"the kernel does not end these killed processes: {alive}"))
            self.exit_code = self.exit_code or ExitCode.CRASHED
            self._end()
        else:
            if self.phase < Phase.STOPPING:  # every request has had its end, so this is no failure
                self._out.append(Say(f"killed, since they did not leave within {EXIT_GRACE:g} s: {alive}"))
            self._kill_all(now)

    def _fail(self, code: int, text: str, now: float) -> None:
        """The first cause keeps its code; what follows from it is not worth a line."""
        if self.phase < Phase.STOPPING:
            self.exit_code = self.exit_code or code
            self._out.append(Say(text))
            self._stop_all(_FAILED, now, may_return=True)

    def _stop_all(self, reason: str, now: float, *, may_return: bool = False) -> None:
        """The frontends end every open answer; the others can do nothing better than end. `may_return`: see Stop."""
        if self.phase < Phase.DRAINING_FRONTEND:
            self._out.append(Stopping())
        self.phase, self._deadline = Phase.STOPPING, now + STOP_GRACE
        self._lives.settle()
        for life in self._lives.alive():
            if life.child.role != "frontend":
                self._lives.kill(life, reason)
            elif life.ready:
                self._out.append(Send(life.child, Stop(reason, STOP_WORDS, may_return=may_return)))
            else:
                self._out.append(Signal(life.child, signal.SIGTERM))
        self._end_if_alone()

    def _kill_all(self, now: float) -> None:
        self.phase, self._deadline = Phase.KILLING, now + KILL_GRACE
        self._lives.settle()
        for life in self._lives.alive():
            self._out.append(Signal(life.child, signal.SIGKILL))
        self._end_if_alone()

    def _end_if_alone(self) -> None:
        if not any(self._lives.alive()):
            self._end()

    def _end(self) -> None:
        self.phase, self._deadline = Phase.ENDED, None
        self._out.append(Exit(self.exit_code))
