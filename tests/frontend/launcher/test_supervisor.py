"""The supervisor as a pure state machine: every order of deaths, words and signals, in virtual time."""

import signal

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from frontend.launcher.events import (
    FRONTEND,
    SCHEDULER,
    Announce,
    Begin,
    Child,
    Command,
    Exit,
    Exited,
    Said,
    Say,
    Send,
    Signal,
    Spawn,
    Stopping,
    StopRequested,
    Tick,
)
from frontend.launcher.restart import DEATHS_IN_WINDOW, FAILED_BOOTS
from frontend.launcher.supervisor import DRAIN_MARGIN, EXIT_GRACE, TERM_GRACE, Supervisor
from protocol.errors import ExitCode
from protocol.messages import Drain, Failed, Progress, Ready, WorkerHung, WorkerLost

W0, W1 = Child("worker", 0), Child("worker", 1)


def serving(workers: int = 2, drain_timeout: float = 30.0) -> Supervisor:
    supervisor = Supervisor(workers=workers, drain_timeout=drain_timeout)
    supervisor.handle(Begin(), 0.0)
    for index in range(workers):
        supervisor.handle(Said(Child("worker", index), 0, Ready()), 1.0)
    assert Announce({"model": "m"}) in supervisor.handle(Said(FRONTEND, 0, Ready({"model": "m"})), 2.0)
    return supervisor


def texts(commands: list[Command]) -> str:
    return "\n".join(command.text for command in commands if isinstance(command, Say))


def test_begin_starts_every_child_once() -> None:
    commands = Supervisor(workers=2, drain_timeout=1.0).handle(Begin(), 0.0)
    assert sorted(commands, key=str) == sorted([Spawn(child, 0) for child in (FRONTEND, SCHEDULER, W0, W1)], key=str)


def test_a_child_that_cannot_boot_ends_the_engine_with_its_words_and_code() -> None:
    supervisor = Supervisor(workers=1, drain_timeout=1.0)
    supervisor.handle(Begin(), 0.0)
    commands = supervisor.handle(Said(W0, 0, Failed(ExitCode.BAD_MODEL, "m.gguf: cut short")), 1.0)
    assert "worker 0: m.gguf: cut short" in texts(commands)
    assert {command.child for command in commands if isinstance(command, Signal)} == {FRONTEND, SCHEDULER, W0}
    for child in (SCHEDULER, W0):
        assert supervisor.handle(Exited(child, 0, -15), 1.1) == []
    assert supervisor.handle(Exited(FRONTEND, 0, 0), 1.2) == [Exit(ExitCode.BAD_MODEL)]


def test_a_death_before_ready_ends_the_engine_even_with_exit_code_0() -> None:
    supervisor = Supervisor(workers=1, drain_timeout=1.0)
    supervisor.handle(Begin(), 0.0)
    assert "scheduler ended with exit code 0" in texts(supervisor.handle(Exited(SCHEDULER, 0, 0), 1.0))
    assert supervisor.exit_code == ExitCode.CRASHED


def test_a_dead_worker_is_reported_to_the_scheduler_and_replaced_with_a_higher_epoch() -> None:
    supervisor = serving()
    commands = supervisor.handle(Exited(W1, 0, -signal.SIGKILL), 10.0)
    assert commands[0] == Send(SCHEDULER, WorkerLost(1, 0))
    assert commands[-1] == Spawn(W1, 1)
    assert "SIGKILL" in texts(commands)
    assert "worker 1 is back" in texts(supervisor.handle(Said(W1, 1, Ready()), 15.0))


def test_restarts_back_off_and_a_crash_loop_ends_the_engine() -> None:
    supervisor, now, delays = serving(), 10.0, []
    for epoch in range(DEATHS_IN_WINDOW - 1):
        commands = supervisor.handle(Exited(W0, epoch, 1), now)
        died = now
        if Spawn(W0, epoch + 1) not in commands:
            now = supervisor.next_deadline() or 0.0
            commands = supervisor.handle(Tick(), now)
        assert Spawn(W0, epoch + 1) in commands
        delays.append(now - died)
        supervisor.handle(Said(W0, epoch + 1, Ready()), now)
    assert delays == [0.0, 1.0, 2.0, 4.0]
    commands = supervisor.handle(Exited(W0, DEATHS_IN_WINDOW - 1, 1), now)
    assert "gives up" in texts(commands)
    assert "ended with exit code 1" in texts(commands)
    assert supervisor.exit_code == ExitCode.CRASHED


def test_deaths_far_apart_are_no_crash_loop() -> None:
    supervisor = serving()
    for epoch in range(3 * DEATHS_IN_WINDOW):
        assert Spawn(W0, epoch + 1) in supervisor.handle(Exited(W0, epoch, 1), 1000.0 * (epoch + 1))
        supervisor.handle(Said(W0, epoch + 1, Ready()), 1000.0 * (epoch + 1) + 5)


def test_a_successor_that_never_boots_ends_the_engine_with_its_own_code_however_long_each_start_takes() -> None:
    supervisor, now, epoch = serving(), 1000.0, 0
    supervisor.handle(Exited(W0, 0, -9), now)
    for epoch in range(1, FAILED_BOOTS + 1):
        now += 1000.0
        supervisor.handle(Tick(), now)
        supervisor.handle(Said(W0, epoch, Failed(ExitCode.DEVICE_UNAVAILABLE, "chip 0 is busy")), now)
        commands = supervisor.handle(Exited(W0, epoch, ExitCode.DEVICE_UNAVAILABLE), now)
    assert "chip 0 is busy" in texts(commands)
    assert supervisor.exit_code == ExitCode.DEVICE_UNAVAILABLE


def test_a_hung_worker_is_killed_unless_the_report_is_about_its_predecessor() -> None:
    supervisor = serving()
    assert supervisor.handle(Said(SCHEDULER, 0, WorkerHung(0, 3, "step 7")), 5.0) == []
    assert supervisor.handle(Said(SCHEDULER, 0, WorkerHung(9, 0, "no such worker")), 5.0) == []
    assert supervisor.handle(Said(SCHEDULER, 0, WorkerHung(0, 0, "step 7 took 60 s")), 5.0) == [Signal(W0, signal.SIGKILL)]
    commands = supervisor.handle(Exited(W0, 0, -9), 5.1)
    assert "step 7 took 60 s" in texts(commands)
    assert Spawn(W0, 1) in commands


def test_a_worker_that_says_its_last_words_but_stays_is_killed() -> None:
    supervisor = serving()
    assert supervisor.handle(Said(W0, 0, Failed(1, "device lost")), 5.0) == []
    assert supervisor.next_deadline() == 5.0 + TERM_GRACE
    assert supervisor.handle(Tick(), 5.0 + TERM_GRACE) == [Signal(W0, signal.SIGKILL)]
    assert "device lost" in texts(supervisor.handle(Exited(W0, 0, -9), 9.0))


def test_the_death_of_scheduler_or_frontend_ends_the_engine() -> None:
    for child in (SCHEDULER, FRONTEND):
        supervisor = serving()
        commands = supervisor.handle(Exited(child, 0, -signal.SIGSEGV), 5.0)
        assert "SIGSEGV" in texts(commands)
        assert {command.child for command in commands if isinstance(command, Signal)} == {FRONTEND, SCHEDULER, W0, W1} - {child}
        assert supervisor.exit_code == ExitCode.CRASHED


def test_a_stop_drains_in_order_and_exits_0() -> None:
    supervisor = serving()
    commands = supervisor.handle(StopRequested(), 10.0)
    assert [command for command in commands if isinstance(command, Send)] == [Send(FRONTEND, Drain())]
    assert Stopping() in commands
    assert supervisor.next_deadline() == 10.0 + 30.0 + DRAIN_MARGIN
    assert supervisor.handle(Exited(FRONTEND, 0, 0), 12.0) == [Send(SCHEDULER, Drain())]
    assert supervisor.handle(Exited(W1, 0, 0), 12.5) == []  # the scheduler's own goodbye may reach a worker first
    assert supervisor.handle(Exited(SCHEDULER, 0, 0), 13.0) == [Send(W0, Drain())]
    assert supervisor.handle(Exited(W0, 0, 0), 14.0) == [Exit(ExitCode.OK)]


def test_a_worker_that_dies_while_requests_finish_is_replaced_but_not_after() -> None:
    supervisor = serving()
    supervisor.handle(StopRequested(), 10.0)
    assert Spawn(W0, 1) in supervisor.handle(Exited(W0, 0, -9), 11.0)
    supervisor.handle(Exited(W0, 1, -9), 12.0)
    assert supervisor.next_deadline() == 13.0
    supervisor.handle(Exited(FRONTEND, 0, 0), 12.5)
    assert supervisor.handle(Tick(), 13.5) == []


def test_a_worker_still_starting_at_the_end_of_a_drain_is_killed_and_the_stop_is_clean() -> None:
    supervisor = serving(workers=1)
    supervisor.handle(Exited(W0, 0, -9), 9.0)
    supervisor.handle(StopRequested(), 10.0)
    supervisor.handle(Exited(FRONTEND, 0, 0), 11.0)
    assert supervisor.handle(Exited(SCHEDULER, 0, 0), 12.0) == [Signal(W0, signal.SIGKILL)]
    assert supervisor.handle(Exited(W0, 1, -9), 12.1) == [Exit(ExitCode.OK)]


def test_a_second_signal_stops_at_once_and_a_third_kills() -> None:
    supervisor = serving(workers=1)
    supervisor.handle(StopRequested(), 10.0)
    assert supervisor.handle(StopRequested(), 11.0) == [Signal(child, signal.SIGTERM) for child in (W0, SCHEDULER, FRONTEND)]
    assert supervisor.next_deadline() == 11.0 + TERM_GRACE
    assert supervisor.handle(StopRequested(), 12.0) == [Signal(child, signal.SIGKILL) for child in (W0, SCHEDULER, FRONTEND)]
    for child in (W0, SCHEDULER, FRONTEND):
        commands = supervisor.handle(Exited(child, 0, -9), 12.5)
    assert commands == [Exit(ExitCode.OK)]


def test_a_child_that_does_not_leave_in_time_is_named_and_the_exit_is_not_clean() -> None:
    supervisor = serving(workers=1)
    supervisor.handle(StopRequested(), 10.0)
    supervisor.handle(Exited(FRONTEND, 0, 0), 11.0)
    commands = supervisor.handle(Tick(), 11.0 + EXIT_GRACE)
    assert "scheduler, " not in texts(commands)
    assert "worker 0, scheduler" in texts(commands)
    assert supervisor.exit_code == ExitCode.CRASHED


def test_a_fatal_cause_keeps_its_code_when_a_stop_signal_follows() -> None:
    supervisor = serving(workers=1)
    supervisor.handle(Said(SCHEDULER, 0, Failed(ExitCode.PROTOCOL, "lost count")), 5.0)
    supervisor.handle(StopRequested(), 5.1)
    for child in (W0, SCHEDULER, FRONTEND):
        commands = supervisor.handle(Exited(child, 0, 0), 5.5)
    assert commands == [Exit(ExitCode.PROTOCOL)]


class Lives(RuleBasedStateMachine):
    """Random children in random order. The test plays the processes: a spawned child lives until it exits or is killed."""

    @initialize(workers=st.integers(1, 3))
    def begin(self, workers: int) -> None:
        self.now = 0.0
        self.supervisor = Supervisor(workers=workers, drain_timeout=5.0)
        self.alive: dict[Child, int] = {}
        self.sent: dict[Child, signal.Signals] = {}
        self.lost: set[tuple[int, int]] = set()
        self.exit_code: int | None = None
        self.announced = 0
        self._apply(self.supervisor.handle(Begin(), self.now))

    def _apply(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Spawn(child, epoch):
                    assert self.exit_code is None
                    assert child not in self.alive, "two incarnations at once"
                    assert epoch == 0 or (child.index, epoch - 1) in self.lost, "restarted before the scheduler knew of the death"
                    self.alive[child] = epoch
                    self.sent.pop(child, None)
                case Send(_, WorkerLost(index, epoch)):
                    assert Child("worker", index) not in self.alive
                    self.lost.add((index, epoch))
                case Signal(child, signum):
                    assert child in self.alive, "a signal to nobody"
                    self.sent[child] = signum
                case Announce():
                    self.announced += 1
                case Exit(code):
                    assert self.exit_code is None
                    self.exit_code = code

    def _is_running(self) -> bool:
        return self.exit_code is None and bool(self.alive)

    @precondition(_is_running)
    @rule(data=st.data(), code=st.sampled_from([0, 1, 65, -9, -15]))
    def dies(self, data: st.DataObject, code: int) -> None:
        child = data.draw(st.sampled_from(sorted(self.alive)))
        self._apply(self.supervisor.handle(Exited(child, self.alive.pop(child), code), self.now))

    @precondition(_is_running)
    @rule(
        data=st.data(),
        message=st.sampled_from([Progress("loading", 1, 2), Ready(), Ready(), Failed(65, "bad"), WorkerHung(0, 1, "x")]),
    )
    def speaks(self, data: st.DataObject, message: Progress | Ready | Failed | WorkerHung) -> None:
        child = data.draw(st.sampled_from(sorted(self.alive)))
        self._apply(self.supervisor.handle(Said(child, self.alive[child], message), self.now))

    @precondition(_is_running)
    @rule()
    def becomes_ready(self) -> None:
        for child in sorted(self.alive, key=lambda child: child == FRONTEND):
            self._apply(self.supervisor.handle(Said(child, self.alive.get(child, 0), Ready()), self.now))

    @precondition(_is_running)
    @rule()
    def stop(self) -> None:
        self._apply(self.supervisor.handle(StopRequested(), self.now))

    @rule(seconds=st.sampled_from([0.0, 0.5, 3.0, 20.0, 1000.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        if self.exit_code is None:
            self._apply(self.supervisor.handle(Tick(), self.now))

    @invariant()
    def state_is_consistent(self) -> None:
        if hasattr(self, "supervisor"):
            self.supervisor.validate()
            assert self.announced <= 1
            deadline = self.supervisor.next_deadline()
            assert deadline is None or self.exit_code is None

    def teardown(self) -> None:
        """Wherever it stands, a stop ends it: children that ignore everything but SIGKILL do not keep it."""
        if not hasattr(self, "supervisor") or not self._is_running():
            return
        self._apply(self.supervisor.handle(StopRequested(), self.now))
        for _ in range(50):
            for child in sorted(child for child in self.alive if self.sent.get(child) == signal.SIGKILL):
                self._apply(self.supervisor.handle(Exited(child, self.alive.pop(child), -9), self.now))
            if not self._is_running():
                break
            deadline = self.supervisor.next_deadline()
            assert deadline is not None, "nothing would ever end this"
            self.now = max(self.now, deadline)
            self._apply(self.supervisor.handle(Tick(), self.now))
        assert self.exit_code is not None
        assert not self.alive


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
