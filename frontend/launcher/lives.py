"""Who is alive: the latest incarnation of every child, and when the next one of those that are replaced is due."""

import signal
from collections.abc import Iterator

from frontend.launcher.events import GRAMMAR, SCHEDULER, Child, Command, Send, Signal, Spawn
from frontend.launcher.incarnation import Incarnation
from frontend.launcher.liveness import Liveness
from frontend.launcher.restart import RestartPolicy
from frontend.restarts import Restarts
from protocol.messages import SchedulerStarted


class Lives:
    """The children of one engine. Starting and killing one appends the command for it to `commands`."""

    def __init__(self, workers: int, frontends: int, restart_delay: float, max_restarts: int, commands: list[Command]) -> None:
        several = max(1, max_restarts // 2)  # deaths of a process without which the engine still serves
        self.workers = {Child("worker", index): RestartPolicy(restart_delay, several) for index in range(workers)}
        self.frontends = {
            Child("frontend", index): RestartPolicy(restart_delay, max_restarts + 1, vital=True) for index in range(frontends)
        }
        self.grammar = RestartPolicy(restart_delay, several)
        self.scheduler = RestartPolicy(restart_delay, max_restarts + 1, vital=True)
        self._replaced = self.workers | self.frontends | {GRAMMAR: self.grammar, SCHEDULER: self.scheduler}
        self._latest: dict[Child, Incarnation] = {}
        self._commands = commands
        self.restarts: Restarts = {}  # by the cause of the end before

    def __getitem__(self, child: Child) -> Incarnation:
        return self._latest[child]

    def alive(self) -> Iterator[Incarnation]:
        """All that live, in the order of their start."""
        return (life for life in self._latest.values() if life.alive)

    def find(self, child: Child, epoch: int) -> Incarnation | None:
        """This very incarnation, if it lives."""
        life = self._latest.get(child)
        return life if life is not None and life.epoch == epoch and life.alive else None

    @property
    def session(self) -> int:
        """Which life of the scheduler it is."""
        return self._latest[SCHEDULER].epoch if SCHEDULER in self._latest else 0

    def is_ready(self, child: Child) -> bool:
        """Whether it lives and reads what it is told."""
        life = self._latest.get(child)
        return life is not None and life.serves

    def num_serving(self) -> int:
        """Workers that do their work."""
        return sum(self._latest[worker].serves for worker in self.workers)

    def begin_all(self, now: float) -> None:
        """Every child at once, those that are slowest to start first."""
        for child in (*self.workers, SCHEDULER, *self.frontends):
            self._spawn(child, now)

    def begin_grammar(self, now: float) -> None:
        """The grammar process, which a start does not wait for: it reads what the frontend leaves for it."""
        if GRAMMAR not in self._latest:
            self._spawn(GRAMMAR, now)

    def kill(self, life: Incarnation, reason: str) -> None:
        """Ends a process, once. The first reason stands."""
        if not life.killed_for:
            life.killed_for = reason
            self._commands.append(Signal(life.child, signal.SIGKILL))

    def tick(self, now: float) -> None:
        """Kills who stayed after a last word, starts whose time has come."""
        for life in self.alive():
            if life.kill_at is not None and now >= life.kill_at:
                life.kill_at = None
                self._commands.append(Signal(life.child, signal.SIGKILL))
        for child, restart in self._replaced.items():
            if restart.due is not None and now >= restart.due:
                self._spawn(child, now)

    def next_deadline(self) -> float | None:
        """When `tick` has something to do (seconds)."""
        times = [*(life.kill_at for life in self._latest.values()), *(restart.due for restart in self._replaced.values())]
        return min((time for time in times if time is not None), default=None)

    def settle(self) -> None:
        """Nothing is started any more, and nobody is killed at a time of its own."""
        for restart in self._replaced.values():
            restart.due = None
        for life in self._latest.values():
            life.kill_at = None

    def settle_frontends(self) -> None:
        """No frontend is started any more."""
        for restart in self.frontends.values():
            restart.due = None

    def validate(self, *, workers_replaced: bool, frontends_replaced: bool) -> None:
        """Raises AssertionError when the state contradicts itself. The arguments: whether dead ones have to be replaced."""
        for life in self._latest.values():
            assert life.alive or life.kill_at is None, "a dead child waits to be killed"
        for child, restart in self._replaced.items():
            if child in self._latest:
                replaced = frontends_replaced if child.role == "frontend" else workers_replaced
                expected = replaced and not self._latest[child].alive
                assert (restart.due is not None) == expected, "a child is started that should not be, or is not that should"

    def _spawn(self, child: Child, now: float) -> None:
        epoch = 0
        if (before := self._latest.get(child)) is not None:
            epoch = before.epoch + 1
            causes = self.restarts.setdefault(str(child), {})
            causes[before.cause] = causes.get(before.cause, 0) + 1
        self._latest[child] = Incarnation(child, epoch, Liveness(now))
        if child in self._replaced:
            self._replaced[child].due = None
        self._commands.append(Spawn(child, epoch, self.session))
        if child == SCHEDULER and epoch > 0:  # those that begin later are told at birth
            self._commands += [Send(life.child, SchedulerStarted(epoch)) for life in self.alive() if life.child != SCHEDULER]
