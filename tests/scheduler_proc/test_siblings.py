"""Requests with a common prefix that come together: it is computed once, whatever becomes of the one that computes it."""

from typing import Any

import msgspec
import pytest

from protocol.codec import pack_int32
from protocol.messages import AbortRequest, ModelRunnerOutput
from scheduler_proc.events import FromWorker
from tests.scheduler_proc.world import World

BLOCK = 16


def world(**options: Any) -> World:
    return World(**({"slots": 16, "blocks": 4000, "block_size": BLOCK, "budget": 512, "max_model_len": 4096} | options))


def prefilled(world: World) -> int:
    """Prompt tokens that all steps so far computed."""
    return world.state.counters["prefill_tokens"]


def submit(world: World, prompts: list[list[int]], **params: Any) -> None:
    """All at once, with seeds of their own, numbered from 0."""
    world.feed(*(world.message(index, prompt, seed=index, **params) for index, prompt in enumerate(prompts)))


def cached(world: World) -> list[int]:
    ends = [world.sent[index].end for index in sorted(world.sent)]
    return [end.num_cached_tokens for end in ends if end is not None]


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("length", [2000, 2001, 1999, 16, 17, 512, 1024])
def test_eight_outputs_of_one_prompt_cost_one_prefill(depth: int, length: int) -> None:
    siblings = world(depth=depth)
    submit(siblings, [[3] * length] * 8, max_tokens=5)
    siblings.drain()
    siblings.check()
    shared = (length - 1) // BLOCK * BLOCK
    assert cached(siblings) == [0] + [shared] * 7
    assert prefilled(siblings) == length + 7 * (length - shared)


def test_without_the_prefix_cache_each_computes_its_own() -> None:
    siblings = world(prefix_caching=False)
    submit(siblings, [[3] * 200] * 4, max_tokens=5)
    siblings.drain()
    siblings.check()
    assert prefilled(siblings) == 4 * 200


def test_prefixes_of_prefixes_are_computed_once_each() -> None:
    siblings = world()
    system, topics = [1] * 640, [[10 + topic] * 320 for topic in range(3)]
    submit(siblings, [system + topic + [40 + ask] * 7 for topic in topics for ask in range(4)], max_tokens=5)
    siblings.drain()
    siblings.check()
    assert prefilled(siblings) == 640 + 3 * 320 + 12 * 7


def test_prompts_that_differ_do_not_wait_for_one_another() -> None:
    strangers = world()
    submit(strangers, [[index] * 100 for index in range(5)], max_tokens=2)
    assert [new.slot for new in strangers.workers[0].inbox[0].new] == [0, 1, 2, 3, 4]
    strangers.drain()
    strangers.check()


def test_other_salts_share_nothing() -> None:
    siblings = world()
    messages = [msgspec.structs.replace(siblings.message(i, [3] * 100, max_tokens=2), cache_salt=str(i % 2)) for i in range(4)]
    siblings.feed(*messages)
    siblings.drain()
    siblings.check()
    assert prefilled(siblings) == 2 * 100 + 2 * 4


@pytest.mark.parametrize("answered", range(5))
@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("fate", ["abort", "death", "failure"])
def test_whoever_computes_the_prefix_may_leave_at_any_time(answered: int, depth: int, fate: str) -> None:
    siblings = world(depth=depth)
    submit(siblings, [[3] * 2000] * 4, max_tokens=5)
    for _ in range(answered):
        siblings.workers[0].run_step()
        siblings.answer(0)
    match fate:
        case "abort":
            siblings.abort(0)
        case "death":
            siblings.lose(0)
            siblings.join(0, epoch=1)
        case "failure":
            siblings.fail_row(0)
    siblings.drain()
    siblings.check()
    if fate == "abort":
        assert prefilled(siblings) <= 2000 + 4 * BLOCK, "what was planned before the abort is computed again"


def test_the_leader_is_preempted_while_others_share_its_blocks() -> None:
    siblings = world(blocks=40, block_size=4, slots=6, max_model_len=64, budget=16)
    submit(siblings, [[3] * 30] * 6, max_tokens=34)
    siblings.drain()
    siblings.check()
    assert siblings.state.counters["preemptions"] > 0


def test_a_sibling_of_higher_rank_is_served_by_the_one_under_way() -> None:
    siblings = world(depth=1)
    siblings.feed(siblings.message(0, [3] * 2000, max_tokens=5))
    siblings.workers[0].run_step()
    siblings.answer(0)
    siblings.feed(siblings.message(1, [3] * 1500 + [4] * 10, max_tokens=5, priority=-1))
    siblings.feed(siblings.message(2, [9] * 3000, max_tokens=5, priority=-1))
    siblings.drain()
    siblings.check()
    assert prefilled(siblings) == 2000 + (1510 - 1488) + 3000
    assert siblings.first_tokens == [1, 2, 0]


def test_siblings_on_a_device_that_saturates() -> None:
    siblings = world(saturating_tokens=64)
    submit(siblings, [[3] * 200] * 4 + [[5] * 100] * 2, max_tokens=5)
    siblings.drain()
    siblings.check()
    assert prefilled(siblings) == 200 + 3 * 8 + 100 + 4


def test_a_short_prompt_of_high_priority_does_not_wait_for_the_long_ones() -> None:
    crowd = world(slots=64, blocks=20_000)
    crowd.feed(*(crowd.message(index, [index % 50] + [index] * 1999, max_tokens=1) for index in range(40)))
    for _ in range(3):
        crowd.workers[0].run_step()
        crowd.answer(0)
    crowd.feed(crowd.message(100, [7] * 20, max_tokens=1, priority=-10))
    for _ in range(crowd.config.queue_depth + 1):
        crowd.workers[0].run_step()
        crowd.answer(0)
    assert crowd.sent[100].end is not None
    crowd.drain()
    crowd.check()


def test_prompts_that_cannot_begin_yet_take_no_slots() -> None:
    """So that who comes later and goes first finds one, and a flood is not taken in at once."""
    crowd = world(slots=8, blocks=20_000)
    budget, depth = crowd.state.lanes[0].token_budget, crowd.config.queue_depth
    crowd.feed(*(crowd.message(index, [index] * 2000, max_tokens=1) for index in range(20)))
    needed = -(-(2 * depth * budget) // 2000)  # for the steps that are in flight, and those behind them
    assert crowd.state.lanes[0].num_running <= needed + 1 < 8
    crowd.drain()
    crowd.check()
    assert crowd.state.counters["steps"] <= -(-20 * 2000 // budget) + 2, "steps had room for prompts that waited"


def test_a_request_that_fails_after_its_preemption_leaves_nothing_in_the_cache() -> None:
    scarce = World(depth=3, blocks=16, slots=2, max_model_len=64)
    scarce.add(0, [0] * 8, max_tokens=50)
    scarce.add(1, [1] * 8, max_tokens=50)
    while not scarce.state.counters["preemptions"]:
        scarce.workers[0].run_step()
        scarce.answer(0)
    request = scarce.state.requests[1]
    assert request.in_flight
    while not request.finished:
        scarce.workers[0].run_step()
        output = scarce.workers[0].outbox.popleft()
        rows = scarce.state.lanes[0].in_flight[0].sampled_slots.tolist()
        failed = [rows.index(1)] if 1 in rows else []
        scarce.sent[1].failed = True
        scarce.feed(FromWorker(0, ModelRunnerOutput(output.epoch, output.step_id, output.token_ids_i32, pack_int32(failed))))
    cache = scarce.state.lanes[0].pool.cache
    assert request.block_hashes
    assert not any(cache.find(name) for name in request.block_hashes)
    scarce.drain()
    scarce.check()


def test_abort_message_in_the_same_turn() -> None:
    siblings = world()
    siblings.feed(*(siblings.message(index, [3] * 100, seed=index, max_tokens=3) for index in range(3)), AbortRequest(0))
    siblings.sent[0].aborted = True
    siblings.drain()
    siblings.check()
    assert prefilled(siblings) == 100 + 4
