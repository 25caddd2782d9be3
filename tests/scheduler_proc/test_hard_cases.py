"""What asynchrony makes hard, one by one. Each comes from a bug that an engine of this kind had."""

import msgspec
import pytest

from protocol.codec import pack_int32, unpack_int32
from protocol.messages import AbortRequest, ModelRunnerOutput
from scheduler_proc.events import FromWorker
from tests.scheduler_proc.world import VOCAB, World
from tpu_worker.simulator import simulated_token


def outputs(prompt: list[int], count: int, seed: int = 0) -> list[int]:
    """The first `count` tokens after `prompt`."""
    context = list(prompt)
    for _ in range(count):
        context.append(simulated_token(context, seed, VOCAB))
    return context[len(prompt) :]


def first_unique(tokens: list[int]) -> int:
    """Index of the first token, from the third on, that did not occur before it."""
    return next(i for i in range(2, len(tokens)) if tokens[i] not in tokens[:i])


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_stop_token_while_later_steps_are_in_flight(depth: int) -> None:
    prompt = [1, 2, 3]
    tokens = outputs(prompt, 30)
    at = first_unique(tokens)
    world = World(depth=depth)
    world.add(0, prompt, max_tokens=30, stop_token_ids=(tokens[at],))
    world.drain()
    world.check()
    assert world.sent[0].tokens == tokens[: at + 1]
    assert world.state.counters["discarded_tokens"] == depth - 1
    assert world.state.counters["generation_tokens"] == at + 1


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [1, 3, 4, 5, 8])
def test_no_step_goes_past_max_tokens(depth: int, length: int) -> None:
    world = World(depth=depth)
    world.add(0, range(length), max_tokens=6)
    world.drain()
    world.check()
    assert world.state.counters["discarded_tokens"] == 0
    assert world.state.counters["steps"] == 6


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_max_tokens_one_never_decodes(depth: int) -> None:
    world = World(depth=depth)
    world.add(0, range(9), max_tokens=1)
    world.drain()
    world.check()
    assert world.state.counters["steps"] == 1


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_prompt_and_output_fill_the_context_exactly(depth: int) -> None:
    world = World(depth=depth, max_model_len=32, blocks=8)
    world.add(0, range(20), max_tokens=12)
    world.add(1, range(31), max_tokens=1)
    world.add(2, range(20), max_tokens=100)
    world.drain()
    world.check()
    assert [len(world.sent[i].tokens) for i in range(3)] == [12, 1, 12]


@pytest.mark.parametrize("length", [4, 8, 12])
def test_prompt_that_ends_on_a_block_boundary(length: int) -> None:
    world = World()
    world.add(0, range(length), max_tokens=9)
    world.add(1, range(length), max_tokens=9)
    world.drain()
    world.add(2, range(length), max_tokens=9)
    world.drain()
    world.check()
    assert world.sent[2].end is not None and world.sent[2].end.num_cached_tokens == length - 4  # the last block is computed again


def test_abort_before_the_first_token() -> None:
    world = World(slots=1)
    world.add(0, range(10), max_tokens=5)
    world.add(1, range(5, 15), max_tokens=5)
    world.abort(0)
    world.drain()
    world.check()
    assert world.sent[0].tokens == []


def test_abort_before_the_worker_heard_of_it() -> None:
    world = World(depth=1, slots=2)
    world.add(0, range(10), max_tokens=5)
    world.add(1, range(5, 15), max_tokens=5)  # admitted, but no credit is left to say so
    world.abort(1)
    world.add(2, range(7), max_tokens=3)
    world.drain()
    world.check()


def test_a_slot_is_reused_while_its_former_holder_is_in_flight() -> None:
    world = World(depth=3, slots=1)
    world.add(0, range(6), max_tokens=20)
    world.workers[0].run_step()
    world.answer(0)
    assert len(world.workers[0].inbox) == 3
    world.abort(0)
    world.add(1, range(3, 9), max_tokens=20)  # its first step is planned when a credit returns, in the same slot and blocks
    world.drain()
    world.check()
    assert world.state.counters["discarded_tokens"] == 3


def test_a_partial_prefill_brings_no_token() -> None:
    world = World(budget=4, slots=1)
    world.add(0, range(15), max_tokens=3)
    for _ in range(3):
        world.workers[0].run_step()
        assert unpack_int32(world.workers[0].outbox[-1].token_ids_i32).tolist() == []
        world.answer(0)
    world.drain()
    world.check()
    assert world.state.counters["steps"] == 4 + 2


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_preempted_with_tokens_in_flight_and_resumed(depth: int) -> None:
    world = World(depth=depth, blocks=16, slots=3, max_model_len=64)
    for request_id in range(3):
        world.add(request_id, [request_id] * 8, max_tokens=40)
    kept = 0
    while not world.state.idle:
        before = {r.request_id: len(r.tokens) for r in world.state.requests.values() if r.in_flight}
        for worker in world.workers.values():
            if worker.inbox:
                worker.run_step()
            if worker.outbox:
                world.answer(0)
        kept += sum(
            len(r.tokens) - before[r.request_id]
            for r in world.state.requests.values()
            if r.request_id in before and r in world.state.admission
        )
    world.check()
    assert world.state.counters["preemptions"] > 0
    assert kept > 0, "tokens in flight at the preemption must be kept, not computed again"
    assert world.state.counters["discarded_tokens"] == 0


def test_a_preempted_request_that_stops_in_flight_is_not_resumed() -> None:
    prompt = [3] * 8
    tokens = outputs(prompt, 40)
    for at in range(2, 30):
        if tokens[at] in tokens[:at]:
            continue
        world = World(depth=3, blocks=16, slots=2, max_model_len=64)
        world.add(0, [1] * 30, max_tokens=30)
        world.add(1, prompt, max_tokens=40, stop_token_ids=(tokens[at],))
        world.drain()
        world.check()


def test_preemption_takes_the_lowest_priority_then_the_latest() -> None:
    world = World(depth=1, blocks=16, slots=3, max_model_len=64)
    world.add(0, [0] * 8, max_tokens=50, priority=1)
    world.add(1, [1] * 8, max_tokens=50, priority=0)
    world.add(2, [2] * 8, max_tokens=50, priority=1)
    while not world.state.counters["preemptions"]:
        world.workers[0].run_step()
        world.answer(0)
    assert world.state.requests[2] in world.state.admission
    world.drain()
    world.check()


def test_priority_overtakes_and_ties_keep_their_order() -> None:
    world = World(depth=1, slots=1)
    world.add(0, [9], max_tokens=3)
    for request_id, priority in ((1, 5), (2, 0), (3, 5), (4, 0)):
        world.add(request_id, [request_id], max_tokens=1, priority=priority)
    ended = []
    while not world.state.idle:
        world.workers[0].run_step()
        world.answer(0)
        ended += [key for key, sent in world.sent.items() if sent.end and key not in ended]
    assert ended == [0, 2, 4, 1, 3]


def test_an_idle_scheduler_still_takes_in_the_last_answers() -> None:
    world = World(depth=3)
    world.add(0, range(5), max_tokens=3)
    for _ in range(3):
        world.workers[0].run_step()
    assert len(world.workers[0].outbox) == 3 and not world.workers[0].inbox
    for _ in range(3):
        world.answer(0)
    world.check()
    assert world.state.idle


def test_steady_decode_sends_only_changes() -> None:
    world = World(depth=2, slots=4, blocks=200, block_size=16, max_model_len=64)
    for request_id in range(4):
        world.add(request_id, range(request_id, request_id + 3), max_tokens=40)
    for _ in range(6):
        world.workers[0].run_step()
        world.answer(0)
    message = world.workers[0].inbox[-1]
    assert message.num_decodes == 4
    assert not (message.new or message.joins_i32 or message.leaves_i32 or message.released_i32 or message.prefill_slots_i32)
    assert not message.block_ids_i32
    world.drain()
    world.check()


def test_programs_that_a_worker_could_not_compile_are_counted() -> None:
    world = World(depth=1)
    world.add(0, range(9), max_tokens=4)
    for failed in (0, 2, 1):
        world.workers[0].run_step()
        world.workers[0].outbox[0] = msgspec.structs.replace(world.workers[0].outbox[0], failed_programs=failed)
        world.answer(0)
    assert world.state.counters["failed_programs"] == 3
    world.drain()
    world.check()


def test_rows_that_are_not_finite_end_their_request_alone() -> None:
    world = World(depth=2)
    world.add(0, range(9), max_tokens=20)
    world.add(1, range(3, 9), max_tokens=20)
    for _ in range(4):
        world.workers[0].run_step()
        world.answer(0)
    blocks = world.state.lanes[0].tables.held(0)
    world.workers[0].run_step()
    good = world.workers[0].outbox.popleft()
    world.feed(FromWorker(0, ModelRunnerOutput(good.epoch, good.step_id, good.token_ids_i32, failed_rows_i32=pack_int32([0]))))
    assert world.sent[0].end is not None and world.sent[0].end.reason == "error"
    assert not any(block in world.state.lanes[0].pool.cache for block in blocks)
    world.sent[0].aborted = True  # what came before the failure is right; nothing may follow it
    world.drain()
    world.check()


@pytest.mark.parametrize("cache", [True, False])
def test_prefix_cache_changes_no_token(cache: bool) -> None:
    world = World(prefix_caching=cache, blocks=64, depth=3)
    for request_id in range(30):
        world.add(request_id, [7] * 17 + [request_id % 3] * 4, max_tokens=10)
        world.drain()
    world.check()
    hits = world.state.counters["prefix_cache_hits"]
    assert hits == (0 if not cache else hits) and (hits > 300) == cache


def test_salted_requests_share_nothing() -> None:
    world = World()
    for request_id, salt in enumerate(["a", "b", "a"]):
        world.feed(msgspec.structs.replace(world.message(request_id, [7] * 17, max_tokens=2), cache_salt=salt))
        world.drain()
    world.check()
    cached = [world.sent[i].end.num_cached_tokens for i in range(3)]  # type: ignore[union-attr]
    assert cached == [0, 0, 16]


def test_evicted_blocks_are_forgotten_least_recently_used_first() -> None:
    world = World(slots=1, blocks=16, block_size=4, max_model_len=64, depth=1)
    for request_id in range(6):
        world.add(request_id, [request_id] * 17, max_tokens=2)
        world.drain()
    world.add(6, [5] * 17, max_tokens=2)  # the latest is still there
    world.add(7, [0] * 17, max_tokens=2)  # the first is gone
    world.drain()
    world.check()
    assert [world.sent[i].end.num_cached_tokens for i in (6, 7)] == [16, 0]  # type: ignore[union-attr]


def test_a_lost_worker_loses_nothing() -> None:
    world = World(depth=2, workers=2, slots=4)
    for request_id in range(8):
        world.add(request_id, range(request_id, request_id + 5), max_tokens=30)
    for index in (0, 1, 0, 1):
        world.workers[index].run_step()
        world.answer(index)
    world.lose(0)
    world.drain()
    world.check()


def test_a_worker_that_never_answers_is_given_up_and_its_work_goes_on() -> None:
    world = World(depth=2, workers=2, slots=4)
    for request_id in range(4):
        world.add(request_id, range(request_id, request_id + 5), max_tokens=12)
    silent = world.workers.pop(0)
    for _ in range(2):  # the other one answers in time
        world.wait(world.config.step_timeout / 2 + 1)
        world.workers[1].run_step()
        world.answer(1)
    assert [report.worker for report in world.hung] == [0]
    world.drain()
    world.check()
    silent.run_step()
    world.feed(FromWorker(0, silent.outbox.popleft()))  # too late to be believed
    assert world.state.counters["refused_wrong_epoch"] == 1


@pytest.mark.parametrize("tokens", [[], [1, 2, 3], [VOCAB], [-1]])
def test_an_answer_that_does_not_fit_its_step_is_not_believed(tokens: list[int]) -> None:
    world = World(depth=1)
    world.add(0, range(5), max_tokens=5)
    step_id = world.workers[0].inbox[0].step_id
    world.feed(FromWorker(0, ModelRunnerOutput(0, step_id, pack_int32(tokens))))
    assert world.state.counters["refused_misfit"] == 1 and [report.worker for report in world.hung] == [0]
    world.join(0, epoch=1)
    world.drain()
    world.check()


def test_unknown_and_repeated_ids_are_harmless() -> None:
    world = World()
    world.feed(AbortRequest(99))
    message = world.message(1, range(5), max_tokens=3)
    world.feed(message, message)
    world.drain()
    world.check()
    world.feed(AbortRequest(1))
    assert world.state.counters["refused_duplicate_request"] == 1


def test_new_requests_go_to_the_worker_with_the_least_work() -> None:
    world = World(workers=3, slots=8)
    for request_id in range(9):
        world.add(request_id, range(4), max_tokens=30)
    assert [world.state.lanes[index].num_running for index in range(3)] == [3, 3, 3]
    world.drain()
    world.check()
