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
    rng = np.random.default_rng(depth)
    for request_id, (prompt, params) in enumerate(random_requests(1000, seed=7, max_model_len=64)):
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
    if shape["blocks"] == 24:
        assert world.state.counters["preemptions"] > 50
    if shape.get("prefix_caching", True):
        assert world.state.counters["prefix_cache_hits"] > 1000
