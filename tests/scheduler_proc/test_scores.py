"""Prompts whose tokens are scored: every position is computed for them, once at least, and nobody else waits for it."""

from typing import Any

import msgspec
import pytest

from protocol.messages import ScoresReady
from scheduler_proc.events import FromWorker, Prepare
from scheduler_proc.explain import explain
from tests.scheduler_proc.world import World


def world(**options: Any) -> World:
    return World(**({"slots": 4, "blocks": 400, "block_size": 4, "budget": 24, "max_model_len": 128} | options))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_prefix_cache_hides_no_position(depth: int) -> None:
    scored, prompt = world(depth=depth), [3, 1, 4, 1, 5, 9, 2, 6] * 5
    scored.add(1, prompt, max_tokens=4)
    scored.drain()
    scored.add(2, prompt, max_tokens=4, prompt_logprobs=2)
    scored.drain()
    scored.add(3, prompt, max_tokens=4)
    scored.drain()
    scored.check()
    assert [scored.sent[index].num_cached_tokens for index in (1, 2, 3)] == [0, 0, 36]
    assert sorted(scored.sent[2].scores) == list(range(1, 40))


def test_what_others_compute_is_no_substitute_and_what_is_scored_is_shared() -> None:
    scored, prompt = world(), [7] * 40
    scored.feed(
        scored.message(1, prompt, max_tokens=4),
        scored.message(2, prompt, max_tokens=4, prompt_logprobs=0),
        scored.message(3, prompt, max_tokens=4, seed=2),
    )
    scored.drain()
    scored.check()
    assert scored.state.counters["prefill_tokens"] == 40 + 40 + 4


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_one_that_is_preempted_while_its_prompt_is_computed_goes_on_where_its_scores_end(depth: int) -> None:
    scored = world(depth=depth, blocks=24, max_model_len=90)
    scored.add(1, [5] * 8, max_tokens=60, priority=-1)
    scored.add(2, list(range(40)) * 2, max_tokens=5, prompt_logprobs=1, priority=1)
    scored.drain()
    scored.check()
    assert scored.state.counters["preemptions"] > 0
    assert scored.state.counters["prefill_tokens"] < 8 + 2 * 85


def test_the_worker_prepares_when_it_is_first_asked_and_others_go_on() -> None:
    scored = world(scores_ready=False)
    scored.add(1, [1] * 30, max_tokens=9)
    assert scored.prepares == []
    scored.feed(
        scored.message(2, [2] * 30, max_tokens=3, prompt_logprobs=1),
        scored.message(3, [2] * 30, max_tokens=9),
        scored.message(4, [3] * 30, max_tokens=3, prompt_logprobs=1),
    )
    for _ in range(20):
        scored.turn(0)
    assert [type(order) for order in scored.prepares] == [Prepare], "asked once"
    assert {index for index, sent in scored.sent.items() if sent.end is not None} == {1, 3}
    assert "compiled" in explain(scored.state.requests[2], scored.state.lanes, scored.state.admission)
    worker = scored.workers[0]
    worker.ready = msgspec.structs.replace(worker.ready, scores_ready=True)
    scored.feed(FromWorker(0, ScoresReady(worker.epoch)))
    scored.drain()
    scored.check()


def test_where_the_program_cannot_be_compiled_those_that_need_it_fail_alone() -> None:
    scored = world(scores_ready=False)
    scored.add(1, [1] * 30, max_tokens=60)
    scored.add(2, [2] * 30, max_tokens=3, prompt_logprobs=1)
    scored.turn(0)
    scored.feed(FromWorker(0, ScoresReady(0, "out of memory")))
    end = scored.sent[2].end
    assert end is not None and end.reason == "error" and "prompts can be neither scored nor pooled: out of memory" in end.message
    del scored.sent[2]
    scored.drain()
    scored.check()
    scored.feed(FromWorker(0, ScoresReady(7)))  # of another incarnation
    assert scored.state.counters["refused_wrong_epoch"] == 1


def test_more_than_there_are_slots_hold_nobody_up_while_the_worker_prepares() -> None:
    scored = world(scores_ready=False)
    scored.feed(*(scored.message(index, [index] * 20, max_tokens=3, prompt_logprobs=0) for index in range(1, 11)))
    scored.add(11, [11] * 30, max_tokens=9)
    for _ in range(20):
        scored.turn(0)
    assert scored.sent[11].end is not None and scored.sent[1].end is None
    scored.abort(10)
    scored.lose(0)
    scored.join(0, 1)  # the next one has to prepare too
    assert len(scored.prepares) == 2
    scored.workers[0].ready = msgspec.structs.replace(scored.workers[0].ready, scores_ready=True)
    scored.feed(FromWorker(0, ScoresReady(1)))
    scored.drain()
    scored.check()


def test_of_two_workers_one_that_is_ready_is_enough() -> None:
    scored = world(workers=2, scores_ready=False)
    scored.add(1, [1] * 30, max_tokens=3, prompt_logprobs=0)
    assert sorted(order.worker for order in scored.prepares) == [0, 1]
    scored.workers[1].ready = msgspec.structs.replace(scored.workers[1].ready, scores_ready=True)
    scored.feed(FromWorker(1, ScoresReady(0)))
    scored.feed(FromWorker(0, ScoresReady(0, "no memory")))
    for _ in range(20):
        scored.turn(1)
    end = scored.sent[1].end
    assert end is not None and end.reason == "length"
    scored.check()
