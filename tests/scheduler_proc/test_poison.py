"""Requests that kill the worker that runs them are failed, each by itself; nobody else is, whoever kills workers besides."""

import signal

import numpy as np
import pytest

from protocol.errors import ExitCode
from protocol.messages import GetStory, Story
from scheduler_proc.events import ToFrontend
from tests.scheduler_proc.world import World, random_requests

CRASH, KILL = -signal.SIGSEGV, -signal.SIGKILL


def failed(world: World) -> list[int]:
    return [request_id for request_id, sent in world.sent.items() if sent.end is not None and sent.end.reason == "error"]


def causes(world: World, request_id: int) -> list[str]:
    world.now += 1000
    for command in world.state.handle([GetStory(0, request_id)], world.now):
        if isinstance(command, ToFrontend) and isinstance(command.message, Story):
            return [move.cause for move in command.message.moves]
    raise AssertionError("no story was told")


def submit(world: World, count: int, *, length: int = 7, max_tokens: int = 12) -> None:
    """Requests of some length, all at once, numbered from 0."""
    prompts = [[index % 50, index // 50] * (length // 2 + 1) for index in range(count)]
    world.feed(*(world.message(index, prompt, max_tokens=max_tokens) for index, prompt in enumerate(prompts)))


@pytest.mark.parametrize("poison", [0, 31, 63])
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("at", [1, 15], ids=["prompt", "output"])
def test_one_that_crashes_among_64_is_failed_after_two_deaths(poison: int, workers: int, at: int) -> None:
    world = World(workers=workers, slots=64, blocks=600, budget=512, validate_every=10)
    world.poison[poison] = at
    submit(world, 64)
    world.serve()
    world.check()
    assert failed(world) == [poison]
    assert world.deaths == 2
    assert world.state.counters["culprits"] == world.state.counters["finished_error"] == 1


@pytest.mark.parametrize("poison", [0, 31, 63])
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("at", [1, 15], ids=["prompt", "output"])
def test_one_that_gets_its_worker_killed_among_64_is_failed_after_a_few_deaths(poison: int, workers: int, at: int) -> None:
    world = World(workers=workers, slots=64, blocks=600, budget=512, validate_every=10)
    world.poison[poison], world.poison_returncode = at, KILL
    submit(world, 64)
    world.serve()
    world.check()
    assert failed(world) == [poison]
    assert world.deaths <= (4 if workers == 1 else 3 + 3 + (workers - 1))  # log4(64), three times alone, and where others were


@pytest.mark.parametrize(("returncode", "deaths"), [(CRASH, 2), (1, 2), (KILL, 3), (ExitCode.RANK_LOST, 3)])
def test_one_that_runs_by_itself_is_failed_after_a_second_crash_or_a_third_kill(returncode: int, deaths: int) -> None:
    world = World(workers=2)
    world.poison[0], world.poison_returncode = 1, returncode
    world.add(0, range(9), max_tokens=5)
    world.serve()
    assert failed(world) == [0]
    assert world.deaths == deaths
    end = world.sent[0].end
    assert end is not None
    assert end.message == f"request 0 ran each of the {deaths} times that a worker died, at last by itself: it is given up"
    assert causes(world, 0)[-1] == end.message


def test_one_that_hangs_the_device_is_failed_after_two_limits() -> None:
    world = World(slots=8)
    submit(world, 8)
    for epoch in (1, 2):
        world.wait(world.config.step_timeout + 1)
        world.join(0, epoch)
        if epoch == 1:
            assert failed(world) == []
    assert failed(world) == [0]  # the first in line was on probation
    world.drain()
    world.check()


def test_the_output_so_far_of_one_that_does_not_stream_comes_with_its_end() -> None:
    world = World()
    world.poison[0] = 14
    world.add(0, range(9), max_tokens=20, stream=False)
    world.serve()
    world.check()
    assert failed(world) == [0]
    assert len(world.sent[0].tokens) == 5


@pytest.mark.parametrize("second", [1, 40, 63])
def test_two_are_failed_each_by_itself(second: int) -> None:
    world = World(slots=64, blocks=600, budget=512, validate_every=10)
    world.poison = {0: 1, second: 1}
    submit(world, 64)
    world.serve()
    world.check()
    assert failed(world) == [0, second]
    assert world.deaths <= 4


def test_a_newcomer_is_blamed_before_those_that_ran_well() -> None:
    world = World(slots=32, blocks=600, budget=512)
    submit(world, 24)
    for _ in range(6):
        world.turn(0)
    world.poison[100] = 1
    world.add(100, range(20), max_tokens=3)
    world.serve()
    world.check()
    assert failed(world) == [100]
    assert world.deaths == 2
    assert not any("probation" in cause for request_id in range(24) for cause in causes(world, request_id))


def test_one_that_kills_late_is_found_behind_newcomers() -> None:
    """The first death looks like the newcomer's doing."""
    world = World(slots=8, blocks=200, budget=64, depth=1)
    world.poison[0] = 12
    world.add(0, range(7), max_tokens=30)
    for _ in range(4):
        world.turn(0)
    world.add(1, range(20), max_tokens=9)
    world.serve()
    world.check()
    assert failed(world) == [0]
    assert world.deaths == 3


def test_a_client_that_tries_again_and_again_harms_nobody_else() -> None:
    world = World(slots=16, blocks=400, budget=128)
    submit(world, 12)
    for attempt in range(100, 104):
        world.poison[attempt] = 1
        world.add(attempt, range(20), max_tokens=3)
        for _ in range(40):
            if 0 in world.workers:
                world.turn(0)
            else:
                world.epochs[0] += 1
                world.join(0, world.epochs[0])
    world.serve()
    world.check()
    assert failed(world) == [100, 101, 102, 103]


def test_suspects_of_a_crash_wait_for_a_worker_of_their_own() -> None:
    world = World(workers=2, slots=8, blocks=200, budget=64)
    submit(world, 8)
    world.lose(0, CRASH)
    for _ in range(4):
        world.turn(1)
    assert world.state.lanes[1].num_running == 4
    world.epochs[0] = 1
    world.join(0, 1)
    assert [request.request_id for _, request in world.state.lanes[0].running()] == [0]
    world.add(100, range(9), max_tokens=3)  # somebody new goes where no suspects run
    assert world.state.requests[100].worker == 1
    world.serve()
    world.check()
    assert not failed(world)


def test_suspects_wait_no_longer_than_half_a_minute_for_a_worker_of_their_own() -> None:
    world = World(workers=2, slots=8, blocks=200, budget=64)
    submit(world, 8)
    world.lose(0, CRASH)
    world.wait(29)
    assert world.state.lanes[1].num_running == 4
    world.wait(2)
    assert world.state.lanes[1].num_running == 5
    world.serve(replaces=False)
    world.check()
    assert not failed(world)


def test_requests_of_a_worker_that_was_killed_go_on_at_once_elsewhere() -> None:
    world = World(workers=2, slots=8, blocks=200, budget=64)
    submit(world, 8)
    world.lose(0, KILL)
    assert world.state.lanes[1].num_running == 4 + 1  # a quarter of its four suspects at a time
    world.serve(replaces=False)
    world.check()
    assert not failed(world)


def test_a_kill_does_not_put_everybody_in_single_file() -> None:
    world = World(slots=24, blocks=600, budget=512)
    submit(world, 24, max_tokens=40)
    for _ in range(4):
        world.turn(0)
    world.lose(0, KILL)
    world.join(0, 1)
    for _ in range(30):  # one by one, it would take twice as many
        world.turn(0)
    assert world.state.lanes[0].num_running == 24
    world.drain()
    world.check()


def test_a_worker_that_left_in_peace_is_nobodys_fault() -> None:
    world = World()
    submit(world, 4)
    for epoch in range(1, 6):
        world.lose(0, 0)
        world.join(0, epoch)
    assert not len(world.state.admission.probation.suspects)
    world.drain()
    world.check()
    assert not failed(world)


def test_a_death_with_nothing_in_flight_is_nobodys_fault() -> None:
    world = World()
    submit(world, 2)
    world.drain()
    world.lose(0, CRASH)
    world.join(0, 1)
    submit(world, 2)
    world.drain()
    assert not failed(world)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_one_that_gets_tokens_between_two_kills_is_not_to_blame(depth: int) -> None:
    world = World(depth=depth, budget=64)
    world.add(0, range(9), max_tokens=50)
    for epoch in range(1, 16):
        for _ in range(depth):
            world.turn(0)
        world.lose(0, KILL)
        world.join(0, epoch)
    world.drain()
    world.check()
    assert not failed(world)


@pytest.mark.parametrize("seed", range(10))
def test_a_long_prompt_is_not_to_blame_for_kills_at_different_places_of_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    world = World(budget=16, blocks=600, max_model_len=1024)
    world.add(0, rng.integers(0, 50, 1000), max_tokens=5)
    for epoch in range(1, 30):
        for _ in range(int(rng.integers(60))):
            world.turn(0)
        world.lose(0, KILL)
        world.join(0, epoch)
    world.drain()
    world.check()
    assert not failed(world)


@pytest.mark.parametrize(("workers", "kills"), [(1, 80), (2, 40), (4, 20)])
def test_kills_at_random_lose_nothing(workers: int, kills: int) -> None:
    """24 requests at a time; whoever is alive may be killed at any moment, whatever it runs."""
    rng = np.random.default_rng(workers)
    world = World(workers=workers, slots=24, blocks=400, budget=64, validate_every=100)
    requests = random_requests(500, seed=workers, max_model_len=64)
    until_kill, back_at = 20, dict[int, int]()
    rounds = sent = 0
    while world.deaths < kills or not world.state.idle:
        rounds += 1
        while len(world.state.requests) < 24 and world.deaths < kills:
            prompt, params = requests[sent % len(requests)]
            world.feed(world.message(sent, prompt, **params))  # type: ignore[arg-type]
            sent += 1
        until_kill -= 1
        if until_kill < 0 and world.workers and world.deaths < kills:
            index = int(rng.choice(list(world.workers)))
            world.lose(index, KILL)
            back_at[index] = rounds + 8
            until_kill = int(rng.integers(5, 40))
        for index in range(workers):
            if index in world.workers:
                world.turn(index)
            elif back_at[index] <= rounds:
                world.epochs[index] += 1
                world.join(index, world.epochs[index])
    world.check()
    assert failed(world) == []


@pytest.mark.parametrize("seed", range(3))
def test_one_that_crashes_is_found_among_kills_at_random(seed: int) -> None:
    rng = np.random.default_rng(seed)
    world = World(workers=2, slots=24, blocks=400, budget=64, validate_every=20)
    world.poison[5] = 1
    submit(world, 24)
    rounds = 0
    while not world.state.idle:
        rounds += 1
        for index in range(2):
            if index not in world.workers:
                if rounds % 6 == 0:
                    world.epochs[index] += 1
                    world.join(index, world.epochs[index])
            elif rng.random() < 0.02:
                world.lose(index, KILL)
            else:
                world.turn(index)
    world.check()
    assert failed(world) == [5]
