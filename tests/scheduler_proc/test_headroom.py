"""Whether a request fits, and what it costs to ask again and again."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest

from protocol.cache_groups import CacheGroups
from protocol.params import EngineParams
from scheduler_proc.blocks import BlockPool
from scheduler_proc.headroom import Headroom
from scheduler_proc.request import Request
from tests.scheduler_proc.world import World


def count_lookups(world: World, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the names that are looked up in the prefix cache of worker 0."""
    lookups: Counter[str] = Counter()
    cache = world.state.lanes[0].pool.cache
    find = cache.find

    def counting(name: bytes) -> int | None:
        lookups["found" if find(name) is not None else "missing"] += 1
        return find(name)

    monkeypatch.setattr(cache, "find", counting)
    return lookups


def test_a_head_that_does_not_fit_costs_the_same_however_long_its_prompt_is(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(slots=4, blocks=600, block_size=4, budget=4096, max_model_len=2200)
    world.add(0, [1] * 2000, max_tokens=2)
    world.drain()  # most of the head's prompt is cached
    world.add(1, range(400), max_tokens=200)
    world.workers[0].run_step()
    world.answer(0)
    world.add(2, [1] * 2000 + [2] * 100, max_tokens=2)
    assert world.state.requests[2] in world.state.admission
    lookups = count_lookups(world, monkeypatch)
    for _ in range(100):
        world.workers[0].run_step()
        world.answer(0)
    assert world.state.requests[2] in world.state.admission
    assert lookups.total() <= 2 * 100
    world.drain()
    world.check()


@pytest.mark.parametrize("windows", [(0,), (9,), (9, 0, 9)], ids=str)
@pytest.mark.parametrize("seed", range(20))
def test_a_remembered_refusal_is_the_answer_that_a_fresh_look_gives(seed: int, windows: tuple[int, ...]) -> None:
    rng = np.random.default_rng(seed)
    pool, groups = BlockPool(40 * len(windows)), CacheGroups(windows, block_size=4, chunk=32)
    asked = Headroom(pool, groups, prefix_caching=True)
    tables: list[list[int]] = []
    head = Request(0, np.arange(80, dtype=np.int32), 80, 90, EngineParams(5), 0, 0, stream=True, cache_salt="")
    Headroom(pool, groups, prefix_caching=True).fits(head, alone=True)  # fills in the names
    for _ in range(400):
        match rng.integers(6):
            case 0 | 1:
                if count := int(rng.integers(0, pool.num_free + 1)):
                    tables.append(pool.allocate(count))
            case 2 if tables:
                pool.release(tables.pop(int(rng.integers(len(tables)))))
            case 3 if tables:
                table = tables[int(rng.integers(len(tables)))]
                pool.cache.commit(head.block_hashes[int(rng.integers(len(head.block_hashes)))], int(rng.choice(table)))
            case 4:
                shared = list(chain.from_iterable(Headroom(pool, groups, prefix_caching=True).hit(head).blocks))
                if shared:
                    pool.share(shared)
                    tables.append(shared)
            case 5 if rng.random() < 0.2:
                head.tokens = np.arange(int(rng.integers(60, 81)), dtype=np.int32)
        pool.validate(tables)
        alone = bool(rng.integers(2)) if rng.random() < 0.1 else False
        fresh = Headroom(pool, groups, prefix_caching=True)
        assert asked.fits(head, alone=alone) == fresh.fits(head, alone=alone) == (fresh.short(head, alone=alone) <= 0)
