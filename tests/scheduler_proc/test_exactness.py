"""Results do not depend on the depth, nor on anything else that the scheduler decides."""

import numpy as np
import pytest

from tests.scheduler_proc.world import World, random_requests


@pytest.mark.parametrize("depth", [1, 2, 3, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "shape",
    [
        {"slots": 8, "blocks": 400},  # roomy
        {"slots": 8, "blocks": 24, "budget": 12},  # preemption all the time, chunked prefill
        {"slots": 8, "blocks": 24, "budget": 12, "prefix_caching": False},
        {"slots": 4, "blocks": 40, "workers": 3},
    ],
    ids=["roomy", "scarce", "scarce-no-prefix-cache", "three-workers"],
)
def test_a_thousand_mixed_requests(depth: int, shape: dict[str, int]) -> None:
    world = World(depth=depth, validate_every=10, **shape)  # type: ignore[arg-type]
    serve_mixed(world, 1000)
    if shape["blocks"] == 24:
        assert world.state.counters["preemptions"] > 50
    if shape.get("prefix_caching", True):
        assert world.state.counters["prefix_cache_hits"] > 1000


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(
    "shape",
    [
        {"blocks": 10, "budget": 9, "windows": (9,)},  # a sequence of full length has 16 blocks of positions
        {"blocks": 10, "budget": 9, "windows": (9,), "prefix_caching": False},
        {"blocks": 40, "budget": 12, "windows": (9, 0, 5)},
    ],
    ids=["window", "window-no-prefix-cache", "mixed"],
)
def test_windows_that_give_blocks_back(depth: int, shape: dict[str, int]) -> None:
    world = World(depth=depth, slots=8, validate_every=3, **shape)  # type: ignore[arg-type]
    serve_mixed(world, 200)
    assert world.state.counters["preemptions"] > 0
    assert (world.state.counters["prefix_cache_hits"] > 0) == shape.get("prefix_caching", True)


def serve_mixed(world: World, count: int) -> None:
    """Requests come while others run; in the end each got what it would get by itself."""
    rng = np.random.default_rng(world.config.queue_depth)
    for request_id, (prompt, params) in enumerate(random_requests(count, seed=7, max_model_len=64)):
        world.add(request_id, prompt, stream=bool(request_id % 3), priority=int(rng.integers(3)), **params)
        for _ in range(int(rng.integers(0, 8))):
            index = int(rng.integers(len(world.workers)))
            worker = world.workers[index]
            if worker.inbox and rng.random() < 0.7:
                worker.run_step()
            elif worker.outbox:
                world.answer(index)
    world.drain()
    world.check()
