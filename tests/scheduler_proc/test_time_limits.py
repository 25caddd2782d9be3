"""Which workers count as hung: those that make no progress while the scheduler was there to see it."""

import pytest

from tests.scheduler_proc.world import World

LIMIT = World().config.step_timeout  # seconds


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_steps_that_each_take_almost_the_limit_hang_nobody(depth: int) -> None:
    world = World(depth=depth)
    world.add(0, range(5), max_tokens=6)
    while not world.state.idle:
        world.wait(LIMIT - 1)
        world.workers[0].run_step()
        world.answer(0)
    assert not world.hung
    world.check()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_step_that_takes_longer_hangs_wherever_it_stands_in_the_pipe(depth: int) -> None:
    for answered in range(depth + 1):
        world = World(depth=depth)
        world.add(0, range(5), max_tokens=9)
        for _ in range(answered):
            world.wait(LIMIT / 2)
            world.workers[0].run_step()
            world.answer(0)
        world.wait(LIMIT - 1)
        assert not world.hung
        world.wait(2)
        assert [report.worker for report in world.hung] == [0]


def test_rest_is_not_held_against_a_worker() -> None:
    world = World()
    world.add(0, range(5), max_tokens=2)
    world.drain()
    world.wait(3 * LIMIT)
    world.add(1, range(5), max_tokens=2)
    world.wait(LIMIT - 1)
    assert not world.hung
    world.drain()
    world.check()


def test_a_freeze_of_the_whole_engine_hangs_nobody() -> None:
    world = World()
    world.add(0, range(5), max_tokens=20)
    for _ in range(5):
        world.now += int(10 * LIMIT * 1e9)  # nothing ran, this scheduler neither
        world.feed()
        world.workers[0].run_step()
        world.answer(0)
    assert not world.hung
    world.now += int(10 * LIMIT * 1e9)
    world.wait(LIMIT + 1)  # awake again, and still no answer
    assert [report.worker for report in world.hung] == [0]
