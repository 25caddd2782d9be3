"""Prompts whose embeddings are wanted: requests that only prefill, exact whatever the cache, other requests and workers do."""

from typing import Any

import msgspec
import pytest

from protocol.messages import ScoresReady
from scheduler_proc.events import FromWorker
from tests.scheduler_proc.world import World

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6] * 5


def world(**options: Any) -> World:
    return World(**({"slots": 4, "blocks": 400, "block_size": 4, "budget": 24, "max_model_len": 128} | options))


def embed(pooled: World, request_id: int, prompt: list[int], pooling: str, priority: int = 0) -> None:
    pooled.add(request_id, prompt, priority=priority, max_tokens=1, pooling=pooling)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_last_token_needs_no_more_than_the_cache_lacks_and_a_mean_needs_every_token(depth: int) -> None:
    pooled = world(depth=depth)
    pooled.add(1, PROMPT, max_tokens=4)
    pooled.drain()
    embed(pooled, 2, PROMPT, "last")
    embed(pooled, 3, PROMPT, "mean")
    pooled.drain()
    pooled.check()
    cached = [end.num_cached_tokens for index in (2, 3) if (end := pooled.sent[index].end) is not None]
    assert cached == [36, 0]
    assert pooled.state.counters["prefill_tokens"] == 40 + 4 + 40


def test_what_an_embedding_computed_others_find() -> None:
    pooled = world()
    embed(pooled, 1, PROMPT, "mean")
    pooled.drain()
    pooled.add(2, PROMPT, max_tokens=4)
    pooled.drain()
    pooled.check()
    assert pooled.sent[2].num_cached_tokens == 36


def test_no_token_of_it_is_counted_or_told() -> None:
    pooled = world()
    for request_id, pooling in enumerate(("last", "mean"), 1):
        embed(pooled, request_id, PROMPT, pooling)
    pooled.drain()
    pooled.check()
    assert pooled.state.counters["generation_tokens"] == 0
    assert pooled.state.counters["finished_stop"] == 2
    assert all(end is not None and end.token_ids_i32 == b"" for end in (sent.end for sent in pooled.sent.values()))


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_prompt_may_fill_the_context(pooling: str) -> None:
    pooled = world()
    embed(pooled, 1, (PROMPT * 4)[:128], pooling)
    pooled.drain()
    pooled.check()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_one_that_is_preempted_begins_its_mean_anew(depth: int) -> None:
    pooled = world(depth=depth, blocks=24, max_model_len=90, budget=8)
    for request_id in range(1, 4):
        pooled.add(request_id, [request_id] * 3, max_tokens=20, priority=-1)
    embed(pooled, 4, list(range(40)) * 2, "mean", priority=1)
    pooled.drain()
    pooled.check()
    assert pooled.state.counters["preemptions"] > 0


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("turns", range(5))
def test_a_worker_that_dies_at_any_step_of_it(workers: int, turns: int) -> None:
    pooled = world(workers=workers)
    for request_id, pooling in enumerate(("last", "mean", "mean"), 1):
        embed(pooled, request_id, PROMPT[request_id:] * 2, pooling)
    for _ in range(turns):
        pooled.turn(0)
    pooled.lose(0)
    pooled.serve()
    pooled.check()


def test_it_waits_for_the_program_and_holds_nobody_up() -> None:
    pooled = world(scores_ready=False)
    for request_id in range(1, 8):
        embed(pooled, request_id, [request_id] * 20, "mean")
    pooled.add(9, [9] * 30, max_tokens=9)
    for _ in range(20):
        pooled.turn(0)
    assert len(pooled.prepares) == 1 and {index for index, sent in pooled.sent.items() if sent.end is not None} == {9}
    worker = pooled.workers[0]
    worker.ready = msgspec.structs.replace(worker.ready, scores_ready=True)
    pooled.feed(FromWorker(0, ScoresReady(worker.epoch)))
    pooled.drain()
    pooled.check()
