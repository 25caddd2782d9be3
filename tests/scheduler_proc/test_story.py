"""What the scheduler answers when asked why a request stands where it stands."""

from collections import Counter

import msgspec
import numpy as np
import pytest

from protocol.messages import ANY_REQUEST, GetStory, Story
from protocol.params import EngineParams
from scheduler_proc.breaches import Breach, Breaches
from scheduler_proc.events import ToFrontend
from scheduler_proc.request import TRANSITIONS, Request, RequestState
from scheduler_proc.story import StoryRing
from tests.scheduler_proc.world import World


def told(world: World, request_id: int, name: str = "") -> Story:
    world.now += 1000
    for command in world.state.handle([GetStory(5, request_id, name)], world.now):
        if isinstance(command, ToFrontend) and isinstance(command.message, Story):
            assert command.message.query_id == 5 and request_id in (ANY_REQUEST, command.message.request_id)
            return command.message
    raise AssertionError("no story was told")


def moves(story: Story) -> list[str]:
    """The states of a story, which must fit together."""
    for one, other in zip(story.moves, story.moves[1:], strict=False):
        assert one.after == other.before
        assert one.at_ns <= other.at_ns
    return [story.moves[0].before, *(move.after for move in story.moves)]


def request() -> Request:
    return Request(1, np.zeros(3, np.int32), 3, 9, EngineParams(6), priority=0, order=0, stream=True, cache_salt="")


def test_the_story_of_a_request_that_runs_through() -> None:
    world = World()
    world.add(3, range(9), max_tokens=2)
    world.drain()
    story = told(world, 3)
    assert moves(story) == ["new", "waiting", "prefilling", "decoding", "finished"]
    assert [move.cause for move in story.moves] == ["arrived", "admitted to worker 0", "every known token is planned", "length"]
    assert story.now == "not here"


def test_a_preempted_request_says_what_it_waited_for() -> None:
    world = World(depth=3, blocks=16, slots=3, max_model_len=64)
    for request_id in range(3):
        world.add(request_id, [request_id] * 8, max_tokens=40)
    world.drain()
    story = told(world, 2)
    states = moves(story)
    assert states[:6] == ["new", "waiting", "prefilling", "decoding", "settling", "waiting"]
    assert states[-1] == "finished"
    assert story.moves[3].cause == "worker 0 ran out of KV blocks"


def test_a_lost_worker_is_named() -> None:
    world = World(workers=2)
    world.add(0, range(5), max_tokens=30)
    world.workers[0].run_step()
    world.answer(0)
    world.lose(0)
    assert [move.cause for move in told(world, 0).moves][3] == "worker 0 died"


def test_what_each_request_stands_at_now() -> None:
    world = World(slots=2, budget=8, blocks=16, depth=1)
    world.add(0, range(20), max_tokens=20)
    world.add(1, range(9), max_tokens=9)
    world.add(2, range(9), max_tokens=9, priority=1)
    world.add(3, range(9), max_tokens=9)
    assert told(world, 0).now == "prefilling on worker 0 in slot 0: 8 of 20 tokens are planned"
    read = "worker 0 has other prompts to read first: 12 tokens of them are not planned yet"
    assert told(world, 1).now == f"waiting at the head: {read}"
    assert told(world, 3).now == f"waiting behind 1; request 1 at the head: {read}"
    for _ in range(2):
        world.workers[0].run_step()
        world.answer(0)
    assert told(world, 3).now == "waiting at the head: worker 0 has no slot, 2 run"
    assert told(world, 2).now == "waiting behind 1; request 3 at the head: worker 0 has no slot, 2 run"
    for _ in range(2):
        world.workers[0].run_step()
        world.answer(0)
    assert told(world, 0).now == "decoding on worker 0 in slot 0: 2 tokens are here, it ends at 20"
    assert told(world, 9).now == "not here"
    world.drain()
    world.check()


def test_who_waits_for_blocks_says_how_many() -> None:
    world = World(slots=4, blocks=16, block_size=4, depth=1, budget=39)
    world.add(0, range(40), max_tokens=4)
    world.add(1, range(10, 50), max_tokens=4)
    assert told(world, 1).now == "waiting at the head: worker 0 lacks 4 KV blocks, 6 are free"
    world.lose(0)
    assert told(world, 0).now == "waiting to run apart, as it ran when a worker died; 0 of that kind are before it"
    assert told(world, 1).now == "waiting at the head: no worker lives"
    world.join(0, epoch=1)
    assert told(world, 0).moves[-1].cause == "on probation on worker 0"
    assert told(world, 1).now == "waiting at the head: worker 0 runs requests that are on probation"
    world.drain()
    world.check()


def test_settling_says_how_many_tokens_are_in_flight() -> None:
    world = World(depth=3, blocks=16, slots=2, max_model_len=64)
    world.add(0, [0] * 8, max_tokens=50)
    world.add(1, [1] * 8, max_tokens=50)
    while not world.state.counters["preemptions"]:
        world.workers[0].run_step()
        world.answer(0)
    assert told(world, 1).now == "settling: 2 tokens of before its preemption are in flight"
    world.drain()
    world.check()


def test_a_story_is_found_by_what_its_client_calls_it() -> None:
    world = World(slots=4)
    for request_id, name in ((1, "mine"), (2, ""), (3, "mine"), (4, "other")):
        world.feed(msgspec.structs.replace(world.message(request_id, range(5), max_tokens=2), name=name))

    def found(name: str) -> tuple[int, tuple[int, ...], str]:
        story = told(world, ANY_REQUEST, name)
        return story.request_id, story.request_ids, story.name

    assert found("mine") == (3, (1, 3), "mine")
    assert found("nobody") == (ANY_REQUEST, (), "")
    assert found("") == (4, (1, 2, 3, 4), "other")
    world.drain()
    assert found("mine") == (3, (1, 3), "mine"), "ended requests are still told of"
    world.check()


def test_no_story_before_the_first_request() -> None:
    world = World()
    story = told(world, ANY_REQUEST)
    assert (story.moves, story.request_ids) == ((), ())


def test_who_has_stood_still_for_longest_is_forgotten_first() -> None:
    ring = StoryRing(Breaches(Counter(), strict=True), capacity=4)
    first, second = request(), request()
    second.request_id = 2
    for one, state in ((first, "WAITING"), (second, "WAITING"), (first, "PREFILLING"), (first, "DECODING"), (first, "FINISHED")):
        ring.move(one, RequestState[state], "cause")
    assert ring.of(2) == () and len(ring.of(1)) == 4
    assert ring.latest(5) == (1,)


def test_the_device_is_busy_with_one_step_at_a_time() -> None:
    world = World()
    world.add(0, range(5), max_tokens=2)
    lane = world.state.lanes[0]
    for started_ns, finished_ns in ((10, 30), (20, 50), (60, 70)):  # the second was dispatched while the first ran
        lane.count_device_time(started_ns, finished_ns)
    assert lane.device_busy_ns == 20 + 20 + 10


def test_the_ring_is_bounded() -> None:
    ring = StoryRing(Breaches(Counter(), strict=True), capacity=4)
    one = request()
    for state in ("WAITING", "PREFILLING", "WAITING", "PREFILLING", "DECODING", "FINISHED"):
        ring.move(one, RequestState[state], "cause")
    assert [move.after for move in ring.of(1)] == ["waiting", "prefilling", "decoding", "finished"]
    assert ring.of(2) == ()


@pytest.mark.parametrize("before", RequestState)
@pytest.mark.parametrize("after", RequestState)
def test_only_the_moves_of_the_table_are_made(before: RequestState, after: RequestState) -> None:
    one = request()
    one.state = before
    ring = StoryRing(Breaches(Counter(), strict=True))
    if after in TRANSITIONS[before]:
        ring.move(one, after, "")
        assert one.state is after
    else:
        with pytest.raises(Breach):
            ring.move(one, after, "")


def test_every_request_can_end_from_wherever_it_stands() -> None:
    for state, following in TRANSITIONS.items():
        assert (RequestState.FINISHED in following) == (state not in (RequestState.NEW, RequestState.FINISHED))
