"""What sequences of models with windows hold, share and give back."""

import random
from itertools import pairwise

import numpy as np
import pytest

from protocol.cache_groups import CacheGroups
from protocol.codec import unpack_int32
from scheduler_proc.block_tables import BlockTables
from scheduler_proc.blocks import BlockPool
from scheduler_proc.prefix_cache import PrefixCache, extend_hashes, in_group
from scheduler_proc.prefix_hit import longest_hit
from tests.scheduler_proc.world import World

_HALTING = (534, 746, 818, 1072)


def run(world: World) -> list[int]:
    """Runs step by step; the blocks held after each."""
    held, pool = [], world.state.lanes[0].pool
    while not world.state.idle:
        world.turn(0)
        held.append(pool.num_blocks - pool.num_free)
    return held


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 3, 390])
def test_a_long_request_holds_window_and_chunk(depth: int, length: int) -> None:
    """400 tokens of context in 7 blocks of 4: a window of 9, and chunks of 16."""
    groups = CacheGroups((9,), 4, 16)
    assert groups.demand(400) == 7
    world = World(depth=depth, blocks=7, budget=16, max_model_len=400, windows=(9,))
    world.add(0, [(7 * i) % 50 for i in range(length)], max_tokens=400 - length, seed=3)
    held = run(world)
    world.check()
    assert max(held) <= 7 and world.state.counters["preemptions"] == 0
    assert max(held[length // 16 + 4 :]) <= 3, "a row that decodes holds the blocks that 9 positions lie in"


@pytest.mark.parametrize("depth", [1, 4])
def test_a_block_that_is_left_before_its_tokens_are_known_gets_no_name(depth: int) -> None:
    """A window of one position: a block is given back with the step that fills it, and by then others may hold it."""
    world = World(depth=depth, slots=2, blocks=9, budget=8, max_model_len=80, windows=(1,))
    for request_id in range(6):
        world.add(request_id, [request_id] * 3, max_tokens=70, seed=request_id)
    run(world)
    world.check()
    changes = world.state.lanes[0].pool.cache.num_changes
    assert changes == 6 if depth > 1 else changes > 50, "of each request the last block, behind which nothing is planned"


def test_the_worker_is_not_told_of_blocks_that_a_slot_got_and_gave_back() -> None:
    pool, groups = BlockPool(20), CacheGroups((9, 0), 4, 16)
    tables = BlockTables(pool, groups, num_slots=3, max_model_len=40)
    for slot in range(3):
        tables.take(slot, longest_hit(pool.cache, [], 0, groups), 4)
    tables.append(np.array([2, 0, 1], np.int32))
    held = tables.held(2)
    tables.release(0)
    slots, blocks, block_groups = map(unpack_int32, tables.take_appended())
    assert slots.tolist() == [2, 1, 2, 1] and block_groups.tolist() == [0, 0, 1, 1]
    assert [blocks[0], blocks[2]] == held[1::2]
    assert tables.take_appended() == (b"", b"", b"")
    tables.validate(np.array([1, 2], np.int32), np.array([8, 8], np.int32))


def test_requests_that_decode_hold_their_windows_alone() -> None:
    """12 requests that come to 60 tokens each: 12 · 15 blocks without windows, and at most 12 · 4 with."""
    world = World(slots=12, blocks=48, budget=16, max_model_len=64, windows=(9,))
    for request_id in range(12):
        world.add(request_id, [request_id], max_tokens=59, seed=request_id)
    run(world)
    world.check()
    assert world.state.counters["preemptions"] == 0
    without = World(slots=12, blocks=48, budget=16, max_model_len=64)
    for request_id in range(12):
        without.add(request_id, [request_id], max_tokens=59, seed=request_id)
    run(without)
    without.check()
    assert without.state.counters["preemptions"] > 10


def test_mixed_groups_give_back_what_only_windows_leave() -> None:
    world = World(slots=1, blocks=200, budget=16, max_model_len=200, windows=(9, 0, 9, 9, 9, 9))
    world.add(0, range(40), max_tokens=160, seed=1)
    held = run(world)
    world.check()
    assert max(held) <= 50 + 5 * 7 and held[-2] <= 50 + 5 * 4 < 6 * 50 / 4


def hits_of(world: World, request_id: int) -> int:
    end = world.sent[request_id].end
    assert end is not None
    return end.num_cached_tokens


@pytest.mark.parametrize(("windows", "blocks"), [((9,), 30), ((9, 0), 66)])
def test_a_hit_needs_what_its_end_sees_and_no_more(windows: tuple[int, ...], blocks: int) -> None:
    world = World(slots=1, blocks=blocks, budget=16, max_model_len=100, windows=windows)
    prompt = [(3 * i) % 50 for i in range(81)]
    world.add(0, prompt, max_tokens=4)
    world.drain()
    world.add(1, [*prompt, 1, 2, 3], max_tokens=8)
    world.drain()
    assert hits_of(world, 1) == 80
    # Somebody takes blocks: first go those that were given back first, which is what lies behind everybody's windows.
    world.add(2, [49 - token for token in range(49)], max_tokens=2)
    world.drain()
    names: list[bytes] = []
    extend_hashes(names, "", np.array(prompt, np.int32), 20, 4)
    cache = world.state.lanes[0].pool.cache
    assert cache.find(names[0]) is None and cache.find(names[1]) is None
    world.add(3, [*prompt, 4], max_tokens=8)
    world.drain()
    world.check()
    assert hits_of(world, 3) == 80


def test_a_gap_in_the_window_ends_a_hit_before_it() -> None:
    cache, groups = PrefixCache(), CacheGroups((9,), 4, 16)
    names = [bytes([index]) * 32 for index in range(12)]
    for index in (0, 1, 2, 4, 5, 6, 8):
        cache.commit(names[index], 100 + index)
    # A token behind block i, at position 4 i, sees the positions from 4 i - 8 on: two blocks.
    assert longest_hit(cache, names, 12, groups).num_blocks == 7
    assert longest_hit(cache, names, 12, groups).blocks == ([105, 106],)
    assert longest_hit(cache, names, 6, groups).blocks == ([104, 105],)
    assert longest_hit(cache, names, 5, groups).num_blocks == 3, "5 would see block 3"
    assert longest_hit(cache, names, 12, groups, held=8).num_blocks == 9, "the caller has block 7"
    assert longest_hit(cache, names, 12, groups, held=9).num_blocks == 9
    assert longest_hit(cache, [], 0, groups).num_blocks == 0


def test_a_hit_is_one_in_all_groups() -> None:
    cache, groups = PrefixCache(), CacheGroups((9, 0), 4, 16)
    names = [bytes([index]) * 32 for index in range(12)]
    for index in range(10):
        cache.commit(in_group(names[index], 0), 100 + index)
    for index in range(6):
        cache.commit(in_group(names[index], 1), 200 + index)
    hit = longest_hit(cache, names, 12, groups)
    assert hit.num_blocks == 6 and hit.blocks == ([104, 105], [200, 201, 202, 203, 204, 205])
    cache.forget(104)
    hit = longest_hit(cache, names, 12, groups)
    assert hit.num_blocks == 4 and hit.blocks == ([102, 103], [200, 201, 202, 203])


@pytest.mark.parametrize("windows", [(9,), (9, 0)])
def test_siblings_share_what_the_end_of_their_prompt_sees(windows: tuple[int, ...]) -> None:
    """Ten that come together: one computes the prompt, and the others begin behind it."""
    world = World(slots=10, blocks=160, budget=32, max_model_len=100, windows=windows)
    prompt = [(3 * i) % 50 for i in range(81)]
    world.feed(*(world.message(request_id, prompt, max_tokens=12, seed=request_id) for request_id in range(10)))
    run(world)
    world.check()
    assert world.state.counters["prefill_tokens"] == 81 + 9
    assert [hits_of(world, request_id) for request_id in range(10)] == [0] + [80] * 9


def test_prompts_whose_blocks_others_hold_get_on_since_somebody_gives_way() -> None:
    """What a prompt leaves behind becomes free for nobody while another one shares it. Of these crowds, some would come to a halt:
    nobody decodes, and no prompt has a block for its next chunk, unless the first of them is given one."""
    for seed in (*_HALTING, *range(60)):
        draw = random.Random(seed)
        window, blocks, budget = draw.choice([9, 13, 17, 25]), draw.randint(8, 14), draw.choice([4, 6, 8])
        if CacheGroups((window,), 4, budget).demand(80) > blocks:
            continue
        world = World(depth=1, blocks=blocks, budget=budget, max_model_len=80, windows=(window,))
        stem = [(3 * i) % 50 for i in range(25)]
        drawn = []
        for _ in range(4):
            kept = draw.choice([0, 8, 12, 16, 24])
            prompt = stem[:kept] + [draw.randrange(50) for _ in range(draw.randint(1, 50))]
            drawn.append((prompt, draw.randint(0, 1), draw.randint(1, 30), draw.randint(0, 12)))
        for request_id, (prompt, priority, max_tokens, rounds) in enumerate(drawn):
            for _ in range(rounds):
                world.turn(0)
            world.add(request_id, prompt, priority=priority, max_tokens=max_tokens)
        world.drain(2000)
        world.check()


def test_blocks_held_at_the_end_of_a_long_request() -> None:
    """The figures of docs/models.md: blocks of 16 tokens, chunks of 512, all layers with a window of 4096 (Mistral 7B v0.1)."""
    chunk, size = 512, 16
    mistral = CacheGroups((4096,), size, chunk)
    assert [CacheGroups((0,), size, chunk).demand(length) for length in (4096, 32768)] == [256, 2048]
    assert [mistral.demand(length) for length in (4096, 32768)] == [256, 289]
    begins = [mistral.first_seen(0, position) for position in (4096, 32767)]
    assert begins == [0, 1792] and 2048 - begins[1] == 256
    assert all(later - earlier in (0, 1) for earlier, later in pairwise(mistral.first_seen(0, at) for at in range(5000)))
