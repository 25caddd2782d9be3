"""The supervisor as a pure state machine: every order of deaths, words and signals, in virtual time."""

import signal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from frontend.launcher.events import (
    FRONTEND,
    GRAMMAR,
    SCHEDULER,
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
    Show,
    Signal,
    Spawn,
    Status,
    Stopping,
    StopRequested,
    Tick,
)
from frontend.launcher.liveness import Limits
from frontend.launcher.phase import DRAIN_MARGIN, EXIT_GRACE, LAST_WORDS, STOP_GRACE, STOP_WORDS, TERM_GRACE
from frontend.launcher.restart import FAILED_BOOTS, LONGEST
from frontend.launcher.supervisor import Supervisor
from protocol.errors import ExitCode
from protocol.messages import (
    ChildToLauncher,
    Drain,
    Failed,
    FrontendLost,
    Progress,
    Pulse,
    Ready,
    SchedulerStarted,
    Stop,
    WorkerHung,
    WorkerLost,
)

W0, W1 = Child("worker", 0), Child("worker", 1)
DEATHS = 5  # of a worker that are a crash loop: half of the restarts that others have
LIMITS = Limits(pulse=10.0, step=60.0, boot=600.0)


F1 = Child("frontend", 1)


def starting(workers: int = 2, drain_timeout: float = 30.0, frontends: int = 1, max_restarts: int = 10) -> Supervisor:
    supervisor = Supervisor(
        workers=workers,
        frontends=frontends,
        drain_timeout=drain_timeout,
        restart_delay=1.0,
        limits=LIMITS,
        max_restarts=max_restarts,
    )
    supervisor.handle(Begin(), 0.0)
    return supervisor


def serving(workers: int = 2, drain_timeout: float = 30.0, frontends: int = 1, max_restarts: int = 10) -> Supervisor:
    supervisor = starting(workers, drain_timeout, frontends, max_restarts)
    supervisor.handle(Said(SCHEDULER, 0, Ready()), 0.5)
    for index in range(workers):
        supervisor.handle(Said(Child("worker", index), 0, Ready()), 1.0)
    commands = supervisor.handle(Said(FRONTEND, 0, Ready({"model": "m"})), 2.0)
    for index in range(1, frontends):
        assert commands == [Show(FRONTEND if index == 1 else Child("frontend", index - 1), None)], "not before all are there"
        commands = supervisor.handle(Said(Child("frontend", index), 0, Ready({"model": "not shown"})), 2.0)
    assert commands[-2:] == [Announce({"model": "m"}), Spawn(GRAMMAR, 0)], "no start waits for it"
    supervisor.handle(Said(GRAMMAR, 0, Ready()), 3.0)
    return supervisor


def texts(commands: list[Command]) -> str:
    return "\n".join(command.text for command in commands if isinstance(command, Say))


def test_begin_starts_every_child_once() -> None:
    commands = Supervisor(workers=2, drain_timeout=1.0, restart_delay=1.0, limits=LIMITS).handle(Begin(), 0.0)
    assert sorted(commands, key=str) == sorted([Spawn(child, 0) for child in (FRONTEND, SCHEDULER, W0, W1)], key=str)


def test_a_child_that_cannot_boot_ends_the_engine_with_its_words_and_code() -> None:
    supervisor = starting(workers=1)
    commands = supervisor.handle(Said(W0, 0, Failed(ExitCode.BAD_MODEL, "m.gguf: cut short")), 1.0)
    assert "worker 0: m.gguf: cut short" in texts(commands)
    assert {command.child for command in commands if isinstance(command, Signal)} == {FRONTEND, SCHEDULER, W0}
    for child in (SCHEDULER, W0):
        assert supervisor.handle(Exited(child, 0, -15), 1.1) == []
    assert supervisor.handle(Exited(FRONTEND, 0, 0), 1.2) == [Exit(ExitCode.BAD_MODEL)]


def test_a_death_before_ready_ends_the_engine_even_with_exit_code_0() -> None:
    supervisor = starting(workers=1)
    assert "scheduler ended with exit code 0" in texts(supervisor.handle(Exited(SCHEDULER, 0, 0), 1.0))
    assert supervisor.exit_code == ExitCode.CRASHED


def test_a_dead_worker_is_reported_to_the_scheduler_and_replaced_with_a_higher_epoch() -> None:
    supervisor = serving()
    commands = supervisor.handle(Exited(W1, 0, -signal.SIGKILL), 10.0)
    assert commands[0] == Send(SCHEDULER, WorkerLost(1, 0))
    assert commands[-1] == Spawn(W1, 1)
    assert "SIGKILL" in texts(commands)
    assert "worker 1 is back" in texts(supervisor.handle(Said(W1, 1, Ready()), 15.0))


def test_the_scheduler_hears_how_a_worker_ended_and_whether_it_was_killed_for_a_reason() -> None:
    supervisor = serving()
    assert Send(SCHEDULER, WorkerLost(0, 0, 1)) in supervisor.handle(Exited(W0, 0, 1), 10.0)
    supervisor.handle(Said(SCHEDULER, 0, WorkerHung(1, 0, "did not answer")), 11.0)
    told = supervisor.handle(Exited(W1, 0, -signal.SIGKILL), 11.1)[0]
    assert isinstance(told, Send)
    assert isinstance(told.message, WorkerLost)
    assert "did not answer" in told.message.killed_for


def die_again_and_again(supervisor: Supervisor, times: int, *, becomes_ready: bool = True) -> tuple[list[Command], list[float]]:
    """Worker 0 dies as soon as it is back: what follows its last death, and the seconds before each new start."""
    now, delays, commands = 10.0, list[float](), list[Command]()
    for epoch in range(times):
        commands = supervisor.handle(Exited(W0, epoch, 1), now)
        if supervisor.exit_code:
            break
        died = now
        if Spawn(W0, epoch + 1) not in commands:
            now = supervisor.next_deadline() or 0.0
            assert Spawn(W0, epoch + 1) in supervisor.handle(Tick(), now)
        delays.append(now - died)
        if becomes_ready:
            supervisor.handle(Said(W0, epoch + 1, Ready()), now)
    return commands, delays


def test_a_worker_that_cannot_be_kept_alive_is_tried_for_ever_while_another_serves() -> None:
    supervisor = serving()
    commands, delays = die_again_and_again(supervisor, 40)
    assert delays[:7] == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
    assert set(delays[7:]) == {LONGEST}
    assert "times within 300 s, the engine serves on with 1 of 2 workers; starting it again in 30 s" in texts(commands)
    assert Status("serving m, degraded: 1 of 2 workers") in commands
    assert supervisor.exit_code == ExitCode.OK
    assert Status("serving m") in supervisor.handle(Said(W0, 40, Ready()), 2000.0)


def test_starts_that_fail_are_tried_for_ever_too() -> None:
    supervisor = serving()
    commands, delays = die_again_and_again(supervisor, 12, becomes_ready=False)
    assert "worker 0 ended with exit code 1; it failed to start 11 times in a row, the engine serves on" in texts(commands)
    assert delays[-1] == LONGEST


def test_the_only_worker_in_a_crash_loop_ends_the_engine() -> None:
    supervisor = serving(workers=1)
    commands, delays = die_again_and_again(supervisor, 40)
    assert len(delays) == DEATHS - 1
    assert "worker 0 died 5 times within 300 s, so the engine gives up; last: worker 0 ended with exit code 1" in texts(commands)
    assert supervisor.exit_code == ExitCode.CRASHED


def test_the_engine_gives_up_when_no_worker_can_be_kept_alive() -> None:
    supervisor, now, epochs, commands = serving(), 10.0, {W0: 0, W1: 0}, list[Command]()
    for _ in range(1 + FAILED_BOOTS):
        assert supervisor.exit_code == ExitCode.OK
        for worker in (W0, W1):
            commands = supervisor.handle(Exited(worker, epochs[worker], 1), now)
            epochs[worker] += 1
        now += LONGEST
        supervisor.handle(Tick(), now)
    assert "worker 1 failed to start" in texts(commands)
    assert ", and no other can be kept alive, so the engine gives up; last: worker 1 ended with exit code 1" in texts(commands)
    assert supervisor.exit_code == ExitCode.CRASHED


def test_a_single_death_of_the_last_worker_does_not_end_the_engine() -> None:
    supervisor = serving()
    die_again_and_again(supervisor, 10, becomes_ready=False)
    assert Spawn(W1, 1) in supervisor.handle(Exited(W1, 0, -9), 1000.0)
    assert supervisor.exit_code == ExitCode.OK


def test_deaths_far_apart_are_no_crash_loop() -> None:
    supervisor = serving()
    for epoch in range(3 * DEATHS):
        assert Spawn(W0, epoch + 1) in supervisor.handle(Exited(W0, epoch, 1), 1000.0 * (epoch + 1))
        supervisor.handle(Said(W0, epoch + 1, Ready()), 1000.0 * (epoch + 1) + 5)


def test_a_successor_that_never_boots_ends_the_engine_with_its_own_code_however_long_each_start_takes() -> None:
    supervisor, now, epoch = serving(workers=1), 1000.0, 0
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


def test_another_scheduler_takes_the_place_of_one_that_died_and_all_are_told() -> None:
    supervisor = serving()
    commands = supervisor.handle(Exited(SCHEDULER, 0, -signal.SIGSEGV), 5.0)
    assert "scheduler was killed by SIGSEGV; the requests wait; starting it again" in texts(commands)
    begun = commands.index(Spawn(SCHEDULER, 1, session=1))
    told = {command.child for command in commands[begun:] if isinstance(command, Send) and command.message == SchedulerStarted(1)}
    assert told == {FRONTEND, GRAMMAR, W0, W1}
    assert "scheduler is back (epoch 1)" in texts(supervisor.handle(Said(SCHEDULER, 1, Ready()), 5.5))
    assert Spawn(W0, 1, session=1) in supervisor.handle(Exited(W0, 0, -9), 6.0), "who begins later is told at birth"
    assert Spawn(SCHEDULER, 2, session=2) in supervisor.handle(Exited(SCHEDULER, 1, 0), 7.0)


def test_another_frontend_takes_the_place_of_the_last_one() -> None:
    supervisor = serving()
    commands = supervisor.handle(Exited(FRONTEND, 0, -9), 5.0)
    assert commands[0] == Send(SCHEDULER, FrontendLost(0, 0))
    assert commands[-1] == Spawn(FRONTEND, 1)
    assert "its clients see their connections end, and those who come wait" in texts(commands)


@pytest.mark.parametrize("child", [SCHEDULER, FRONTEND])
def test_what_all_requests_go_through_starts_at_once_and_so_often_within_a_minute(child: Child) -> None:
    supervisor = serving(max_restarts=3)
    now, epoch = 5.0, 0
    for _ in range(20):  # never more than three within a minute
        assert Spawn(child, epoch + 1, session=epoch + 1 if child == SCHEDULER else 0) in supervisor.handle(
            Exited(child, epoch, -9), now
        )
        now, epoch = now + 20.1, epoch + 1
        supervisor.handle(Said(child, epoch, Ready()), now - 1)
    for _ in range(1):
        supervisor.handle(Exited(child, epoch, -9), now)
        now, epoch = now + 0.1, epoch + 1
        supervisor.handle(Said(child, epoch, Ready()), now)
    commands = supervisor.handle(Exited(child, epoch, -9), now)
    assert f"{child} died 4 times within 60 s, so the engine gives up; last: {child} was killed by SIGKILL" in texts(commands)
    assert supervisor.exit_code == ExitCode.CRASHED


@pytest.mark.parametrize("child", [SCHEDULER, FRONTEND])
def test_what_all_requests_go_through_and_cannot_be_started_again_ends_the_engine(child: Child) -> None:
    supervisor = serving()
    supervisor.handle(Exited(child, 0, -9), 5.0)
    for epoch in range(1, FAILED_BOOTS):
        supervisor.handle(Said(child, epoch, Failed(ExitCode.ADDRESS_IN_USE, "taken")), 6.0 * epoch)
        supervisor.handle(Exited(child, epoch, ExitCode.ADDRESS_IN_USE), 6.0 * epoch)
        assert supervisor.exit_code == ExitCode.OK
        supervisor.handle(Tick(), 6.0 * epoch + 5.0)
    supervisor.handle(Said(child, FAILED_BOOTS, Failed(ExitCode.ADDRESS_IN_USE, "taken")), 50.0)
    supervisor.handle(Exited(child, FAILED_BOOTS, ExitCode.ADDRESS_IN_USE), 50.0)
    assert supervisor.exit_code == ExitCode.ADDRESS_IN_USE


def test_a_stop_while_the_only_frontend_is_gone_ends_the_engine_in_order() -> None:
    supervisor = serving(workers=1)
    for epoch in range(2):  # the second time it is waited for
        supervisor.handle(Exited(FRONTEND, epoch, 1), 5.0)
    supervisor.handle(Exited(FRONTEND, 2, 1), 5.0)
    assert supervisor.next_deadline() is not None
    commands = supervisor.handle(StopRequested(), 5.1)
    assert commands[-2:] == [Send(SCHEDULER, Drain()), Send(GRAMMAR, Drain())]


def test_a_scheduler_that_died_in_a_drain_is_replaced_while_requests_run() -> None:
    supervisor = serving(workers=1)
    supervisor.handle(StopRequested(), 5.0)
    assert Spawn(SCHEDULER, 1, session=1) in supervisor.handle(Exited(SCHEDULER, 0, -9), 6.0)
    commands = supervisor.handle(Exited(FRONTEND, 0, 0), 6.1)
    assert Signal(SCHEDULER, signal.SIGKILL) in commands, "nobody needs it any more, and it reads no messages yet"
    assert Send(W0, Drain()) in supervisor.handle(Exited(SCHEDULER, 1, -9), 6.2)


def test_the_death_of_scheduler_or_frontend_without_restarts_ends_the_engine() -> None:
    for child in (SCHEDULER, FRONTEND):
        supervisor = serving(max_restarts=0)
        commands = supervisor.handle(Exited(child, 0, -signal.SIGSEGV), 5.0)
        assert "SIGSEGV" in texts(commands)
        assert {command.child for command in commands if isinstance(command, Signal)} == {SCHEDULER, GRAMMAR, W0, W1} - {child}
        told = [command.message for command in commands if isinstance(command, Send)]
        assert told[-1] == (
            FrontendLost(0, 0)
            if child == FRONTEND
            else Stop("the engine failed before the answer was complete", STOP_WORDS, may_return=True)
        )
        assert supervisor.exit_code == ExitCode.CRASHED


def test_a_grammar_process_that_dies_or_is_stuck_is_replaced_however_often() -> None:
    supervisor = serving(workers=1)
    for epoch in range(2 * DEATHS):
        commands = supervisor.handle(Exited(GRAMMAR, epoch, -signal.SIGKILL), 10.0 + 100.0 * epoch)
        assert "structured outputs wait" in texts(commands)
        if Spawn(GRAMMAR, epoch + 1) not in commands:
            deadline = supervisor.next_deadline()
            assert deadline is not None
            assert supervisor.handle(Tick(), deadline) == [Spawn(GRAMMAR, epoch + 1)]
    supervisor.validate()
    epoch = 2 * DEATHS
    supervisor.handle(Said(GRAMMAR, epoch, Ready()), 2000.0)
    assert supervisor.handle(Said(GRAMMAR, epoch, Failed(1, "no memory")), 2001.0) == []
    assert supervisor.handle(Tick(), 2001.0 + TERM_GRACE) == [Signal(GRAMMAR, signal.SIGKILL)]
    assert supervisor.handle(Exited(GRAMMAR, epoch, -9), 2010.0)[-1] == Spawn(GRAMMAR, epoch + 1)
    supervisor.handle(Said(GRAMMAR, epoch + 1, Ready()), 2011.0)
    late = 2011.0 + LIMITS.silence(ready=True) + 1.0
    pulse(supervisor, late, W0, SCHEDULER, FRONTEND)
    assert look(supervisor, late) == [Signal(GRAMMAR, signal.SIGKILL)]
    assert supervisor.exit_code == ExitCode.OK


def look(supervisor: Supervisor, now: float, *stopped: Child) -> list[Command]:
    return supervisor.handle(Looked(frozenset(stopped)), now)


def pulse(supervisor: Supervisor, now: float, *children: Child) -> None:
    for child in children:
        assert supervisor.handle(Said(child, 0, Pulse("idle", 7)), now) == []


def test_a_worker_that_is_stopped_is_killed_and_replaced() -> None:
    supervisor = serving()
    look(supervisor, 8.0)
    for now in (12.0, 17.9):
        pulse(supervisor, now, W1, SCHEDULER, FRONTEND)
        assert look(supervisor, now, W0) == []
    pulse(supervisor, 18.1, W1, SCHEDULER, FRONTEND)
    look(supervisor, 18.1)  # it ran in between
    pulse(supervisor, 28.0, W1, SCHEDULER, FRONTEND)
    assert look(supervisor, 28.0, W0) == []
    pulse(supervisor, 28.2, W1, SCHEDULER, FRONTEND)
    assert look(supervisor, 28.2, W0) == [Signal(W0, signal.SIGKILL)]
    assert look(supervisor, 28.3, W0) == []
    commands = supervisor.handle(Exited(W0, 0, -9), 28.4)
    assert "worker 0 was killed: it was stopped by a signal for 10 s; starting it again" in texts(commands)
    assert Spawn(W0, 1) in commands


def test_a_worker_may_be_silent_as_long_as_a_step_may_take() -> None:
    supervisor = serving()
    for now in range(10, 60, 5):
        pulse(supervisor, now, W1, SCHEDULER, FRONTEND)
        assert look(supervisor, now) == []
    pulse(supervisor, 61.1, W1, SCHEDULER, FRONTEND)
    assert look(supervisor, 61.1) == [Signal(W0, signal.SIGKILL)]


@pytest.mark.parametrize("child", [SCHEDULER, FRONTEND])
def test_a_scheduler_or_frontend_that_is_stopped_or_silent_is_killed_and_replaced(child: Child) -> None:
    for stopped, limit, why in ((True, 10.0, "it was stopped by a signal for 10 s"), (False, 60.0, "it made no progress for 60 s")):
        supervisor = serving(workers=1)
        others = {W0, SCHEDULER, FRONTEND, GRAMMAR} - {child}
        pulse(supervisor, 5.0, child, *others)
        look(supervisor, 5.0)
        pulse(supervisor, 4.9 + limit, *others)
        assert look(supervisor, 4.9 + limit, *([child] if stopped else [])) == []
        pulse(supervisor, 5.1 + limit, *others)
        commands = look(supervisor, 5.1 + limit, *([child] if stopped else []))
        assert commands == [Signal(child, signal.SIGKILL)]
        commands = supervisor.handle(Exited(child, 0, -9), 5.2 + limit)
        assert f"{child} was killed: {why}" in texts(commands)
        assert stopped or "last seen idle after 7 events" in texts(commands)
        assert Spawn(child, 1, session=1 if child == SCHEDULER else 0) in commands


def test_a_start_is_deaf_for_as_long_as_a_compilation_may_take_but_not_stopped() -> None:
    supervisor = starting()
    for now in range(0, 599, 7):
        pulse(supervisor, now, SCHEDULER, FRONTEND)
        assert look(supervisor, now) == []
    supervisor.handle(Said(W1, 0, Progress("compiling", 1, 3)), 599.0)
    pulse(supervisor, 601.0, SCHEDULER, FRONTEND)
    commands = look(supervisor, 601.0)
    assert "worker 0 was killed: it made no progress for 600 s" in texts(commands)
    assert supervisor.exit_code == ExitCode.CRASHED


def test_a_worker_that_somebody_stops_while_it_starts_is_replaced_a_few_times() -> None:
    supervisor, now = starting(), 0.0
    for epoch in range(FAILED_BOOTS):
        assert supervisor.exit_code == ExitCode.OK
        now += 10.1
        pulse(supervisor, now, SCHEDULER, FRONTEND)
        assert look(supervisor, now, W0) == [Signal(W0, signal.SIGKILL)]
        supervisor.handle(Exited(W0, epoch, -9), now)
        now += 5.0
        supervisor.handle(Tick(), now)
    assert supervisor.exit_code == ExitCode.CRASHED


def test_when_a_stop_is_under_way_its_own_limits_hold() -> None:
    supervisor = serving(workers=1)
    supervisor.handle(StopRequested(), 10.0)
    supervisor.handle(Exited(FRONTEND, 0, 0), 11.0)
    supervisor.handle(Exited(GRAMMAR, 0, 0), 11.5)
    assert look(supervisor, 1000.0) == []
    assert look(supervisor, 1001.0, W0) == [Signal(W0, signal.SIGKILL)]  # it could not leave when it is asked to
    supervisor.handle(Exited(W0, 0, -9), 1001.1)
    assert supervisor.handle(Exited(SCHEDULER, 0, 0), 1001.2) == [Exit(ExitCode.OK)]


def test_a_stop_drains_in_order_and_exits_0() -> None:
    supervisor = serving()
    commands = supervisor.handle(StopRequested(), 10.0)
    assert [command for command in commands if isinstance(command, Send)] == [Send(FRONTEND, Drain(LAST_WORDS))]
    assert Stopping() in commands
    assert supervisor.next_deadline() == 10.0 + 30.0 + LAST_WORDS + DRAIN_MARGIN
    assert supervisor.handle(Exited(FRONTEND, 0, 0), 12.0) == [Send(SCHEDULER, Drain()), Send(GRAMMAR, Drain())]
    assert supervisor.handle(Exited(GRAMMAR, 0, 0), 12.2) == []
    assert supervisor.handle(Exited(W1, 0, 0), 12.5) == []
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
    supervisor.handle(Exited(GRAMMAR, 0, 0), 11.5)
    assert supervisor.handle(Exited(SCHEDULER, 0, 0), 12.0) == [Signal(W0, signal.SIGKILL)]
    assert supervisor.handle(Exited(W0, 1, -9), 12.1) == [Exit(ExitCode.OK)]


def test_a_second_signal_stops_at_once_and_a_third_kills() -> None:
    supervisor = serving(workers=1)
    supervisor.handle(StopRequested(), 10.0)
    reason = "the engine was stopped before the answer was complete"
    killed = [Signal(child, signal.SIGKILL) for child in (W0, SCHEDULER)]
    assert supervisor.handle(StopRequested(), 11.0) == [
        *killed,
        Send(FRONTEND, Stop(reason, STOP_WORDS)),
        Signal(GRAMMAR, signal.SIGKILL),
    ]
    assert supervisor.next_deadline() == 11.0 + STOP_GRACE
    supervisor.handle(Exited(W0, 0, -9), 11.1)
    assert supervisor.handle(StopRequested(), 11.2) == [Signal(child, signal.SIGKILL) for child in (SCHEDULER, FRONTEND, GRAMMAR)]
    supervisor.handle(Exited(GRAMMAR, 0, -9), 11.25)
    supervisor.handle(Exited(SCHEDULER, 0, -9), 11.3)
    assert supervisor.handle(Exited(FRONTEND, 0, -9), 11.3) == [Exit(ExitCode.OK)]


def test_a_frontend_that_does_not_finish_in_time_is_named_and_the_exit_is_not_clean() -> None:
    supervisor = serving(workers=1)
    supervisor.handle(StopRequested(), 10.0)
    assert supervisor.handle(Tick(), 40.0) == []
    commands = supervisor.handle(Tick(), 10.0 + 30.0 + LAST_WORDS + DRAIN_MARGIN)
    assert "still running at the end of the time to drain: worker 0, scheduler, frontend" in texts(commands)
    assert supervisor.exit_code == ExitCode.CRASHED


def test_once_every_request_has_ended_nothing_makes_the_exit_unclean() -> None:
    supervisor = serving()
    supervisor.handle(StopRequested(), 10.0)
    supervisor.handle(Exited(FRONTEND, 0, 0), 11.0)
    assert "worker 1 was killed by SIGSEGV after the last request" in texts(supervisor.handle(Exited(W1, 0, -11), 11.5))
    commands = supervisor.handle(Tick(), 11.0 + EXIT_GRACE)
    assert "killed, since they did not leave within 5 s: worker 0, scheduler" in texts(commands)
    supervisor.handle(Exited(W0, 0, -9), 17.0)
    supervisor.handle(Exited(GRAMMAR, 0, -9), 17.0)
    assert supervisor.handle(Exited(SCHEDULER, 0, -9), 17.0) == [Exit(ExitCode.OK)]


def test_a_fatal_cause_keeps_its_code_when_a_stop_signal_follows() -> None:
    supervisor = serving(workers=1, max_restarts=0)
    supervisor.handle(Said(SCHEDULER, 0, Failed(ExitCode.PROTOCOL, "lost count")), 5.0)
    supervisor.handle(Exited(SCHEDULER, 0, ExitCode.PROTOCOL), 5.0)
    supervisor.handle(StopRequested(), 5.1)
    for child in (W0, GRAMMAR, FRONTEND):
        commands = supervisor.handle(Exited(child, 0, 0), 5.5)
    assert commands == [Exit(ExitCode.PROTOCOL)]


def test_a_frontend_that_dies_while_another_serves_is_reported_and_replaced() -> None:
    supervisor = serving(workers=1, frontends=2)
    commands = supervisor.handle(Exited(FRONTEND, 0, -signal.SIGKILL), 10.0)
    assert commands[0] == Send(SCHEDULER, FrontendLost(0, 0))
    assert commands[-1] == Spawn(FRONTEND, 1)
    assert "frontend was killed by SIGKILL (if nobody sent it, the system may be out of memory); the others serve on" in texts(
        commands
    )
    assert "frontend is back (epoch 1)" in texts(supervisor.handle(Said(FRONTEND, 1, Ready()), 11.0))
    supervisor.handle(Said(F1, 0, Failed(ExitCode.CRASHED, "KeyError: 5")), 12.0)
    assert Signal(F1, signal.SIGKILL) in supervisor.handle(Tick(), 12.0 + TERM_GRACE)
    commands = supervisor.handle(Exited(F1, 0, -9), 16.0)
    assert "frontend 1: KeyError: 5; the others serve on; starting it again" in texts(commands)
    assert supervisor.exit_code == ExitCode.OK


def test_the_engine_ends_with_its_last_frontend() -> None:
    supervisor = serving(workers=1, frontends=2, max_restarts=0)
    supervisor.handle(Exited(FRONTEND, 0, 1), 10.0)
    commands = supervisor.handle(Exited(F1, 0, 1), 10.1)  # the first is not back yet
    assert "frontend 1 ended with exit code 1" in texts(commands)
    assert supervisor.exit_code == ExitCode.CRASHED


def test_a_frontend_that_fails_to_start_ends_the_engine() -> None:
    supervisor = starting(workers=1, frontends=2)
    supervisor.handle(Said(F1, 0, Failed(ExitCode.ADDRESS_IN_USE, "port 8000 is taken")), 1.0)
    assert supervisor.exit_code == ExitCode.ADDRESS_IN_USE


def test_a_frontend_that_hangs_while_another_serves_is_killed_and_replaced() -> None:
    supervisor = serving(workers=1, frontends=2)
    now = 2.0 + LIMITS.step + 0.5
    for child in (W0, SCHEDULER, F1):
        supervisor.handle(Said(child, 0, Pulse("idle", 1)), now)
    assert supervisor.handle(Looked(), now + 0.1) == [Signal(FRONTEND, signal.SIGKILL)]
    assert supervisor.handle(Exited(FRONTEND, 0, -9), now + 0.2)[-1] == Spawn(FRONTEND, 1)


def test_all_frontends_drain_and_the_scheduler_follows_the_last() -> None:
    supervisor = serving(workers=1, frontends=2)
    commands = supervisor.handle(StopRequested(), 10.0)
    assert commands[-2:] == [Send(FRONTEND, Drain(LAST_WORDS)), Send(F1, Drain(LAST_WORDS))]
    supervisor.handle(Exited(FRONTEND, 0, 0), 11.0)
    assert supervisor.handle(Exited(F1, 0, 0), 12.0) == [Send(SCHEDULER, Drain()), Send(GRAMMAR, Drain())]


def test_a_frontend_that_crashes_in_a_drain_takes_nothing_from_the_others_but_the_exit_is_not_clean() -> None:
    supervisor = serving(workers=1, frontends=2)
    supervisor.handle(StopRequested(), 10.0)
    commands = supervisor.handle(Exited(F1, 0, -11), 11.0)
    assert Send(SCHEDULER, FrontendLost(1, 0)) in commands
    assert "while the engine drained; the others go on" in texts(commands)
    assert not any(isinstance(command, Spawn) for command in commands)
    assert supervisor.handle(Exited(FRONTEND, 0, 0), 12.0) == [Send(SCHEDULER, Drain()), Send(GRAMMAR, Drain())]
    assert supervisor.exit_code == ExitCode.CRASHED


def test_a_frontend_that_waits_for_its_restart_is_not_started_in_a_drain() -> None:
    supervisor = serving(workers=1, frontends=2)
    supervisor.handle(Exited(F1, 0, 1), 10.0)
    supervisor.handle(Exited(F1, 1, 1), 10.1)
    supervisor.handle(Exited(F1, 2, 1), 10.1)
    assert supervisor.next_deadline() is not None
    supervisor.handle(StopRequested(), 10.2)
    assert supervisor.handle(Tick(), 12.0) == []
    assert supervisor.handle(Exited(FRONTEND, 0, 0), 12.0) == [Send(SCHEDULER, Drain()), Send(GRAMMAR, Drain())]


class Lives(RuleBasedStateMachine):
    """Random children in random order. The test plays the processes: a spawned child lives until it exits or is killed."""

    @initialize(workers=st.integers(1, 3), frontends=st.integers(1, 3))
    def begin(self, workers: int, frontends: int) -> None:
        self.now = 0.0
        self.supervisor = Supervisor(workers=workers, frontends=frontends, drain_timeout=5.0, restart_delay=1.0, limits=LIMITS)
        self.alive: dict[Child, int] = {}
        self.sent: dict[Child, signal.Signals] = {}
        self.lost: set[tuple[Child, int]] = set()
        self.exit_code: int | None = None
        self.announced = 0
        self.session = 0
        self._apply(self.supervisor.handle(Begin(), self.now))

    def _apply(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Spawn(child, epoch, session):
                    assert session == (epoch if child == SCHEDULER else self.session)
                    self.session = session
                    assert self.exit_code is None
                    assert child not in self.alive, "two incarnations at once"
                    assert epoch == 0 or child in (GRAMMAR, SCHEDULER) or (child, epoch - 1) in self.lost, (
                        "restarted before the scheduler knew of the death"
                    )
                    self.alive[child] = epoch
                    self.sent.pop(child, None)
                case Send(_, WorkerLost(index, epoch)):
                    assert Child("worker", index) not in self.alive
                    self.lost.add((Child("worker", index), epoch))
                case Send(child, SchedulerStarted(session)):
                    assert session == self.session and child in self.alive and child != SCHEDULER
                case Send(_, FrontendLost(index, epoch)):
                    assert Child("frontend", index) not in self.alive
                    self.lost.add((Child("frontend", index), epoch))
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
        message=st.sampled_from(
            [Progress("loading", 1, 2), Ready(), Ready(), Failed(65, "bad"), WorkerHung(0, 1, "x"), Pulse("idle", 3)]
        ),
    )
    def speaks(self, data: st.DataObject, message: ChildToLauncher) -> None:
        child = data.draw(st.sampled_from(sorted(self.alive)))
        self._apply(self.supervisor.handle(Said(child, self.alive[child], message), self.now))

    @precondition(_is_running)
    @rule()
    def becomes_ready(self) -> None:
        for child in sorted(self.alive, key=lambda child: child.role == "frontend"):
            self._apply(self.supervisor.handle(Said(child, self.alive.get(child, 0), Ready()), self.now))

    @precondition(_is_running)
    @rule()
    def stop(self) -> None:
        self._apply(self.supervisor.handle(StopRequested(), self.now))

    @precondition(_is_running)
    @rule(data=st.data())
    def looks(self, data: st.DataObject) -> None:
        stopped = data.draw(st.sets(st.sampled_from(sorted(self.alive))))
        self._apply(self.supervisor.handle(Looked(frozenset(stopped)), self.now))

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
TestLives.settings = settings(max_examples=100, stateful_step_count=25)


def test_all_get_on_when_each_that_serves_has_said_something() -> None:
    supervisor = serving(workers=2)
    everyone = (SCHEDULER, FRONTEND, GRAMMAR, W0, W1)
    for child in everyone[:-1]:
        supervisor.handle(Said(child, 0, Pulse("idle", 1)), 10.0)
    assert not supervisor.all_moved_since(5.0)
    supervisor.handle(Said(W1, 0, Pulse("idle", 1)), 11.0)
    assert supervisor.all_moved_since(5.0)
    assert not supervisor.all_moved_since(10.0), "not since then"
    for child in everyone[:-1]:
        supervisor.handle(Said(child, 0, Pulse("idle", 2)), 20.0)
    supervisor.handle(Exited(W1, 0, -9), 21.0)
    supervisor.handle(Tick(), 30.0)
    assert supervisor.all_moved_since(15.0), "a worker that is dead, or starts, has limits of its own"
