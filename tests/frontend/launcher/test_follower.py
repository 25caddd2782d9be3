"""What the launcher decides on a host of a rank behind the first: every order of deaths, words and signals, in virtual time."""

import signal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from frontend.launcher.events import (
    Announce,
    Begin,
    Child,
    Command,
    Exit,
    Exited,
    Looked,
    Said,
    Say,
    Send,
    Signal,
    Spawn,
    StopRequested,
    Tick,
)
from frontend.launcher.follower import FollowerSupervisor
from frontend.launcher.liveness import Limits
from frontend.launcher.phase import EXIT_GRACE, KILL_GRACE, TERM_GRACE
from frontend.launcher.restart import FAILED_BOOTS
from protocol.errors import ExitCode
from protocol.messages import ChildToLauncher, Drain, Failed, Progress, Pulse, Ready

F1 = Child("follower", 1)
LIMITS = Limits(pulse=10.0, step=60.0, boot=600.0)


def starting() -> FollowerSupervisor:
    supervisor = FollowerSupervisor(1, 1.0, 10, LIMITS)
    assert supervisor.handle(Begin(), 0.0) == [Spawn(F1, 0)]
    return supervisor


def serving() -> FollowerSupervisor:
    supervisor = starting()
    assert Announce({"rank": 1}) in supervisor.handle(Said(F1, 0, Ready({"rank": 1})), 1.0)
    return supervisor


def said(commands: list[Command]) -> str:
    return "\n".join(command.text for command in commands if isinstance(command, Say))


def test_an_end_of_rank_0_in_peace_is_the_end_here() -> None:
    supervisor = serving()
    commands = supervisor.handle(Exited(F1, 0, 0), 2.0)
    assert commands[-1] == Exit(ExitCode.OK)
    assert said(commands) == "rank 0 ended, and so does this one"


@pytest.mark.parametrize("lost", [Failed(ExitCode.RANK_LOST, "rank 0 (a) is gone"), Failed(ExitCode.CRASHED, "the device failed")])
def test_what_a_restart_mends_is_started_again_at_once(lost: Failed) -> None:
    supervisor = serving()
    supervisor.handle(Said(F1, 0, lost), 2.0)
    commands = supervisor.handle(Exited(F1, 0, lost.exit_code), 2.0)
    assert Spawn(F1, 1) in commands
    assert said(commands) == f"follower 1: {lost.message}; starting it again"
    commands = supervisor.handle(Said(F1, 1, Ready({"rank": 1})), 9.0)
    assert said(commands) == "follower 1 is back (epoch 1)"
    assert not any(isinstance(command, Announce) for command in commands)
    assert supervisor.restarts == {"follower 1": {"failed": 1}}


@pytest.mark.parametrize("code", [ExitCode.BAD_CONFIG, ExitCode.BAD_MODEL, ExitCode.DEVICE_UNAVAILABLE, ExitCode.OUT_OF_MEMORY])
@pytest.mark.parametrize("ready", [False, True])
def test_what_no_restart_mends_ends_this_host(code: int, ready: bool) -> None:
    supervisor = serving() if ready else starting()
    supervisor.handle(Said(F1, 0, Failed(code, "the ranks disagree: …")), 2.0)
    commands = supervisor.handle(Exited(F1, 0, code), 2.0)
    assert commands[-1] == Exit(code)
    assert said(commands) == "follower 1: the ranks disagree: …"


def test_who_cannot_be_started_is_given_up() -> None:
    supervisor, now = starting(), 0.0
    for epoch in range(FAILED_BOOTS):
        now += 100.0
        supervisor.handle(Tick(), now)
        commands = supervisor.handle(Exited(F1, epoch, -signal.SIGSEGV), now)
    assert commands[-1] == Exit(ExitCode.CRASHED)
    assert f"follower 1 failed to start {FAILED_BOOTS} times in a row, so this host gives up" in said(commands)


def test_who_makes_no_progress_is_killed_and_waiting_is_progress() -> None:
    supervisor, now = starting(), 0.0
    for _ in range(100):
        now += LIMITS.boot / 2
        assert supervisor.handle(Looked(), now) == []
        supervisor.handle(Said(F1, 0, Progress("waiting for rank 0", 0, 1)), now)
    assert supervisor.handle(Looked(), now + LIMITS.boot + 1) == [Signal(F1, signal.SIGKILL)]
    supervisor = serving()
    supervisor.handle(Looked(), 2.0)
    assert supervisor.handle(Looked(frozenset({F1})), 2.0 + LIMITS.pulse + 1) == [Signal(F1, signal.SIGKILL)]
    commands = supervisor.handle(Exited(F1, 0, -signal.SIGKILL), 14.0)
    assert "follower 1 was killed: it was stopped by a signal for 10 s; starting it again" in said(commands)


def test_a_stop_lets_the_others_know_and_a_second_one_kills() -> None:
    supervisor = serving()
    assert Send(F1, Drain()) in supervisor.handle(StopRequested(), 5.0)
    assert supervisor.handle(StopRequested(), 5.5) == [Signal(F1, signal.SIGKILL)]
    assert supervisor.handle(Exited(F1, 0, -signal.SIGKILL), 6.0) == [Exit(ExitCode.OK)]
    supervisor = serving()
    supervisor.handle(StopRequested(), 5.0)
    assert supervisor.next_deadline() == 5.0 + EXIT_GRACE
    assert supervisor.handle(Tick(), 5.0 + EXIT_GRACE) == [Signal(F1, signal.SIGKILL)]
    commands = supervisor.handle(Tick(), 5.0 + EXIT_GRACE + KILL_GRACE)
    assert commands[-1] == Exit(ExitCode.CRASHED)
    assert Signal(F1, signal.SIGKILL) in starting().handle(StopRequested(), 1.0)  # it reads nothing while it loads


class Life(RuleBasedStateMachine):
    """A child that says and does anything, in any order."""

    @initialize()
    def begin(self) -> None:
        self.now, self.alive, self.epoch = 0.0, False, -1
        self.exit_code: int | None = None
        self.announced = 0
        self.supervisor = FollowerSupervisor(1, 1.0, 10, LIMITS)
        self._apply(self.supervisor.handle(Begin(), self.now))

    def _apply(self, commands: list[Command]) -> None:
        for command in commands:
            assert self.exit_code is None, "the end is the last word"
            match command:
                case Spawn(child, epoch):
                    assert (child, epoch, self.alive) == (F1, self.epoch + 1, False)
                    self.alive, self.epoch = True, epoch
                case Signal() | Send():
                    assert self.alive
                case Announce():
                    self.announced += 1
                case Exit(code):
                    self.exit_code = code

    @precondition(lambda self: self.exit_code is None)
    @rule(
        message=st.sampled_from(
            [Pulse("following", 1), Progress("compiling", 0, 1), Ready({}), Failed(1, "x"), Failed(64, "y"), Failed(75, "z")]
        ),
        late=st.booleans(),
    )
    def say(self, message: ChildToLauncher, late: bool) -> None:
        self._apply(self.supervisor.handle(Said(F1, self.epoch - late, message), self.now))

    @precondition(lambda self: self.alive and self.exit_code is None)
    @rule(returncode=st.sampled_from([0, 1, 64, 75, -9, -6]))
    def die(self, returncode: int) -> None:
        self.alive = False
        self._apply(self.supervisor.handle(Exited(F1, self.epoch, returncode), self.now))

    @precondition(lambda self: self.exit_code is not None)
    @rule()
    def rest(self) -> None:
        """It has ended."""

    @precondition(lambda self: self.exit_code is None)
    @rule()
    def stop(self) -> None:
        self._apply(self.supervisor.handle(StopRequested(), self.now))

    @precondition(lambda self: self.exit_code is None)
    @rule(seconds=st.sampled_from([0.1, 1.0, TERM_GRACE, 20.0, 700.0]), stopped=st.booleans())
    def wait(self, seconds: float, stopped: bool) -> None:
        self.now += seconds
        self._apply(self.supervisor.handle(Tick(), self.now))
        if self.exit_code is None:
            self._apply(self.supervisor.handle(Looked(frozenset({F1} if stopped else ())), self.now))

    @invariant()
    def state_holds(self) -> None:
        self.supervisor.validate()
        assert self.announced <= 1
        if self.exit_code is None and not self.alive:
            assert self.supervisor.next_deadline() is not None, "nobody is there and nothing will happen"


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=30)
