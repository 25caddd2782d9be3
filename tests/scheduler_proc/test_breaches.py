"""A broken rule fails a test; in production it is counted and said once, and every request ends as it should."""

import logging

import pytest

from scheduler_proc.blocks import BlockPool
from scheduler_proc.breaches import Breach
from scheduler_proc.invariants import validate, validate_idle
from scheduler_proc.request import RequestState
from scheduler_proc.state import SchedulerState
from tests.scheduler_proc.world import World


def test_a_serving_engine_counts_and_says_it_once(caplog: pytest.LogCaptureFixture) -> None:
    state = SchedulerState(World().config)
    with caplog.at_level(logging.ERROR):
        for text in ("first", "second"):
            state.breaches.report(Breach("blocks", text))
        state.breaches.report(Breach("slots", "third"))
    assert [record.getMessage().rsplit(": ")[-1] for record in caplog.records] == ["first", "third"]
    assert (state.counters["breach_blocks"], state.counters["breach_slots"]) == (2, 1)


def test_a_move_that_is_not_in_the_table_ends_nobody(caplog: pytest.LogCaptureFixture) -> None:
    world = World(strict=False)
    world.add(0, range(5), max_tokens=4)
    world.state.requests[0].state = RequestState.NEW
    world.drain(validated=False)
    world.check()
    assert world.state.counters["breach_transition"] == 1


def test_a_state_that_contradicts_itself_is_found() -> None:
    world = World()
    world.add(0, range(5), max_tokens=4)
    lane = world.state.lanes[0]
    lane.tables._end[0, 0] -= 1
    with pytest.raises(Breach) as found:
        validate(world.state)
    assert found.value.kind == "blocks"
    lane.tables._end[0, 0] += 1
    lane.free_slots.append(0)
    with pytest.raises(Breach) as found:
        validate(world.state)
    assert found.value.kind == "slots"


@pytest.mark.parametrize("rest", ["slot", "block", "holder", "name", "row", "request"])
def test_what_is_left_in_an_idle_engine_is_found(rest: str) -> None:
    world = World()
    world.add(0, range(9), max_tokens=4)
    request = world.state.requests[0]
    world.drain()
    validate_idle(world.state)
    lane = world.state.lanes[0]
    match rest:
        case "slot":
            lane.free_slots[0] = lane.free_slots[1]
        case "block":
            lane.pool.allocate(1)
        case "holder":
            lane.pool._holders[5] = 1
        case "name":
            lane.pool.cache.commit(b"x", lane.pool._blank[0])
        case "row":
            lane.joins.append(0)
        case "request":
            world.state.admission.waiting.push(request)
    with pytest.raises(Breach):
        validate_idle(world.state)


def pool() -> tuple[BlockPool, list[int]]:
    """Ten blocks: three held, the first two of them named; one free and named."""
    pool = BlockPool(10)
    blocks = pool.allocate(4)
    for index in (0, 1, 3):
        pool.cache.commit(bytes([index]), blocks[index])
    pool.release(blocks[3:])
    return pool, blocks[:3]


def test_the_pool_accounts_for_every_block() -> None:
    good, held = pool()
    good.validate([held[:1], held[1:]])
    with pytest.raises(Breach):
        good.validate([held, held[:1]])
    with pytest.raises(Breach):
        good.validate([held[1:]])
    with pytest.raises(Breach):
        good.validate([])


@pytest.mark.parametrize("damage", ["free twice", "lost", "idle without a name", "blank with a name", "two names"])
def test_a_damaged_pool_is_found(damage: str) -> None:
    broken, held = pool()
    match damage:
        case "free twice":
            broken._blank.append(broken._blank[0])
        case "lost":
            broken._blank.pop()
        case "idle without a name":
            broken.cache.forget(next(iter(broken._idle)))
        case "blank with a name":
            broken.cache.commit(b"x", broken._blank[0])
        case "two names":
            broken.cache._block_of[b"x"] = held[0]
    with pytest.raises(Breach):
        broken.validate([held])


def test_a_distrusted_block_is_found_by_nobody_and_still_accounted_for() -> None:
    good, held = pool()
    (idle,) = good._idle
    good.distrust(idle)
    good.distrust(held[0])
    good.validate([held])
    assert good.cache.find(bytes([0])) is None
    assert good.cache.find(bytes([3])) is None
    assert good.cache.find(bytes([1])) == held[1]
