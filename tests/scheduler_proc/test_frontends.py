"""Several frontends: each is told of its own requests, and one that ends takes its own along."""

import numpy as np
import pytest

from protocol.messages import EngineReady, EngineStats, FrontendJoined, FrontendLost, GetStats, WorkerLost
from protocol.request_ids import request_ids
from scheduler_proc.events import Event, ToFrontend
from tests.scheduler_proc.world import World, random_requests


def said(world: World, *events: Event) -> list[tuple[int, object]]:
    """What the frontends are told at these events."""
    world.now += 1000
    commands = world.state.handle(events, world.now)
    return [(command.frontend, command.message) for command in commands if isinstance(command, ToFrontend)]


@pytest.mark.parametrize("seed", range(4))
def test_each_frontend_gets_its_own_and_the_answers_are_those_of_one(seed: int) -> None:
    world = World(frontends=3, workers=2, depth=1 + seed % 3, blocks=24, slots=3)
    ids = [request_ids(frontend, epoch=seed) for frontend in range(3)]
    rng = np.random.default_rng(seed)
    for prompt, params in random_requests(24, seed, world.max_model_len):
        world.add(next(ids[rng.integers(3)]), prompt, priority=0, stream=bool(rng.random() < 0.8), **params)
        if rng.random() < 0.5:
            world.turn(int(rng.integers(2)))
    world.serve()
    world.check()


def test_the_requests_of_a_lost_frontend_end_and_the_others_do_not_notice() -> None:
    world = World(frontends=2)
    first, second = request_ids(0, 0), request_ids(1, 0)
    ours, lost = [next(first) for _ in range(3)], [next(second) for _ in range(5)]
    for request_id in (*ours, *lost):
        world.add(request_id, range(6), max_tokens=20)
    for _ in range(4):
        world.turn(0)
    for request_id in lost:
        world.sent[request_id].aborted = True
    world.feed(FrontendLost(1, 0))
    assert sorted(world.state.requests) == ours
    late = world.message(next(second), range(6), max_tokens=20)  # was still in the pipe
    world.sent[late.request_id].aborted = True
    world.feed(late)
    assert world.state.counters["refused_frontend_lost"] == 1
    world.drain()
    world.check()
    world.feed(FrontendJoined(1, 1))
    back = next(request_ids(1, 1))
    world.add(back, range(6), max_tokens=20)
    world.drain()
    world.check()


def test_a_frontend_that_joins_ends_what_its_predecessor_left_and_is_told_the_capacity() -> None:
    world = World(frontends=2)
    orphan = next(request_ids(1, 0))
    world.add(orphan, range(6), max_tokens=20)
    world.sent[orphan].aborted = True
    ((frontend, capacity),) = said(world, FrontendJoined(1, 1))
    assert frontend == 1
    assert isinstance(capacity, EngineReady)
    assert capacity.workers == 1
    assert world.state.idle or not world.state.requests
    assert said(world, FrontendJoined(0, 0)) == [(0, capacity)]


def test_questions_are_answered_to_who_asked() -> None:
    world = World(frontends=2)
    number = next(request_ids(1, 2))
    ((frontend, stats),) = said(world, GetStats(number))
    assert (frontend, isinstance(stats, EngineStats)) == (1, True)


def test_all_hear_of_the_workers() -> None:
    world = World(frontends=3, workers=2)
    world.workers.pop(0)
    assert [frontend for frontend, message in said(world, WorkerLost(0, 0)) if isinstance(message, EngineReady)] == [0, 1, 2]
