"""Constrained requests among others: masks that come when they like, tokens that are forced, a grammar process that dies."""

import numpy as np
import pytest

from protocol.codec import pack_int32, unpack_int32
from protocol.grammar_messages import Forced
from protocol.messages import MasksMissing, ModelRunnerOutput
from protocol.params import Grammar
from scheduler_proc.events import FromWorker
from tests.scheduler_proc.grammars import allowed_after
from tests.scheduler_proc.test_story import told
from tests.scheduler_proc.world import VOCAB, World, random_requests

ANY = Grammar("regex", "7")


def forced_text(length: int, start: int = 0) -> str:
    """A grammar that leaves no choice for so many output tokens from `start` on, and some before."""
    for number in range(10_000):
        output: list[int] = []
        choices = []
        while len(output) < start + length:
            allowed = allowed_after(str(number), output, VOCAB)
            choices.append(len(allowed))
            output.append(allowed[-1])
        if all(count > 1 for count in choices[:start]) and all(count == 1 for count in choices[start:]):
            return str(number)
    raise AssertionError("no such grammar")


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("forces", [False, True])
@pytest.mark.parametrize("blocks", [17, 64])
def test_every_output_follows_its_grammar(depth: int, forces: bool, blocks: int) -> None:
    """With few blocks some are preempted."""
    world = World(depth=depth, workers=2, blocks=blocks, forces=forces, pieces=depth == 2)
    for request_id, (prompt, params) in enumerate(random_requests(40, 100 * depth + blocks, 64, structured=0.6)):
        world.add(request_id, prompt, stream=request_id % 3 > 0, **params)  # type: ignore[arg-type]
    world.drain()
    world.check()
    assert bool(world.state.counters["forced_tokens"]) == forces
    assert (blocks == 64) == (world.state.counters["preemptions"] == 0)


def test_random_interleavings() -> None:
    """Messages of every pipe are read when the dice say so; workers and grammar process die at times."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        world = World(
            depth=int(rng.integers(1, 4)), workers=2, blocks=int(rng.choice([16, 24, 64])), budget=int(rng.choice([4, 9, 32])),
            forces=bool(rng.random() < 0.8), pieces=bool(rng.random() < 0.5), prefix_caching=bool(rng.random() < 0.5),
        )  # fmt: skip
        requests = random_requests(30, seed, 64, structured=0.7)
        while requests or not world.state.idle:
            match rng.integers(12):
                case 0 | 1 if requests:
                    prompt, params = requests.pop()
                    world.add(len(world.sent), prompt, stream=bool(rng.random() < 0.7), **params)  # type: ignore[arg-type]
                case 2 | 3 | 4:
                    world.run_grammar(int(rng.integers(1, 6)))
                case 5 | 6 | 7:
                    world.hear_grammar(int(rng.integers(1, 6)))
                case 8 if rng.random() < 0.03:
                    world.replace_grammar()
                case 8 if rng.random() < 0.03:
                    index = int(rng.integers(2))
                    world.lose(index)
                    world.epochs[index] += 1
                    world.join(index, world.epochs[index])
                case 9 if rng.random() < 0.1:
                    going = [key for key, sent in world.sent.items() if sent.end is None and not sent.aborted]
                    if going:
                        world.abort(int(rng.choice(going)))
                case _:
                    index = int(rng.integers(2))
                    worker = world.workers[index]
                    if worker.inbox and rng.random() < 0.7:
                        worker.run_step()
                    elif worker.outbox:
                        world.answer(index)
        world.check()


def test_rows_without_a_grammar_do_not_wait_for_masks() -> None:
    world = World(depth=2)
    world.feed(world.message(0, [1, 2, 3], max_tokens=5, structured=ANY), world.message(1, [4, 5], max_tokens=5))
    world.workers[0].run_step()
    world.answer(0)
    assert (len(world.sent[0].tokens), len(world.sent[1].tokens)) == (0, 1)
    assert world.state.lanes[0].ledger.in_flight == 2  # the step is not answered: its credit is not back
    world.drain()
    world.check()


def test_a_batch_without_grammars_asks_nobody() -> None:
    world = World()
    world.hear_grammar()
    world.run_grammar()
    for request_id in range(3):
        world.add(request_id, [request_id, 2, 3], max_tokens=6)
    world.drain()
    assert not world.grammar.inbox and world.state.lanes[0].num_constrained == 0


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_forced_tokens_cost_few_steps(depth: int) -> None:
    text, prompt = forced_text(12), [1, 2, 3]
    world = World(depth=depth, forces=True, budget=32)
    world.add(0, prompt, max_tokens=20, structured=Grammar("regex", text))
    world.drain()
    world.check()
    assert world.state.counters["forced_tokens"] >= 12 - depth - 1
    assert world.state.counters["steps"] <= 20 - (12 - depth - 2)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_an_output_may_end_among_forced_tokens(depth: int) -> None:
    """By its length, and by a stop id: what is forced behind that is not taken, and nothing is computed for what is."""
    text = forced_text(12)
    output: list[int] = []
    while len(output) < 12:
        output += allowed_after(text, output, VOCAB)
    assert len(set(output)) > 6
    for max_tokens, stop_ids in ((9, ()), (20, (output[7],))):
        world = World(depth=depth, forces=True)
        world.add(0, [1, 2, 3], structured=Grammar("regex", text), max_tokens=max_tokens, stop_token_ids=stop_ids)
        world.drain()
        world.check()
        assert world.state.counters["steps"] <= depth + 2


def test_blocks_of_forced_tokens_are_found_by_their_name() -> None:
    world = World(depth=2, forces=True, blocks=64)
    world.add(0, [1, 2, 3, 4], max_tokens=30, structured=Grammar("regex", forced_text(12)))
    world.drain()
    whole = [1, 2, 3, 4, *world.sent[0].tokens]
    world.add(1, whole, max_tokens=2)
    world.drain()
    world.check()
    assert world.sent[1].num_cached_tokens == (len(whole) - 1) // 4 * 4


@pytest.mark.parametrize("params", [{"logprobs": 1}, {"bad_words": ((VOCAB - 1,),)}])
def test_what_only_sampling_can_tell_keeps_tokens_from_being_forced(params: dict[str, object]) -> None:
    """Log-probabilities are those of the model at each token; a token that is ruled out as well ends its request."""
    world = World(forces=True)
    world.add(0, [1, 2], max_tokens=14, structured=Grammar("regex", forced_text(12)), **params)  # type: ignore[arg-type]
    world.drain()
    world.check()
    assert world.state.counters["forced_tokens"] == 0 and world.state.counters["steps"] == 14


def test_nonsense_is_not_forced() -> None:
    world = World(forces=False)
    world.add(0, [1, 2], max_tokens=9, structured=ANY)
    world.run_grammar()
    for position, tokens in ((0, [VOCAB]), (0, [-1, 3]), (5, [1, 2, 3]), (0, [])):
        world.feed(Forced(0, position, pack_int32(tokens)))
    world.feed(Forced(17, 0, pack_int32([1])))  # nobody
    world.drain()
    world.check()


def test_a_failed_grammar_ends_its_request_alone() -> None:
    world = World(depth=2)
    for request_id in range(3):
        world.add(request_id, [request_id, 2, 3], max_tokens=9, structured=ANY)
    world.hear_grammar()
    world.run_grammar()
    world.hear_grammar()
    world.fail_grammar(1)
    world.drain()
    world.check()
    assert world.sent[1].end is not None and world.sent[1].end.message == "request 1 has no grammar any more"
    assert world.sent[0].end is not None and world.sent[0].end.reason == "length"


def test_a_new_grammar_process_hears_everything() -> None:
    """It reads what its predecessor left, and believes nothing of it."""
    world = World(depth=2)
    world.hear_grammar()
    for request_id in range(3):
        world.add(request_id, [request_id, 2, 3], max_tokens=12, structured=ANY)
    for _ in range(3):
        world.workers[0].run_step() if world.workers[0].inbox else None
        world.run_grammar(3)
        world.replace_grammar()
        world.hear_grammar()
    world.drain()
    world.check()


def test_an_old_hello_changes_nothing() -> None:
    world = World()
    world.replace_grammar()
    hello = world.grammar.outbox[0]
    world.hear_grammar()
    world.grammar.inbox.clear()
    world.feed(hello)
    assert not world.grammar.inbox and world.state.counters["refused_grammar_hello"] == 1


def test_a_step_that_waits_for_masks_is_no_hung_worker_and_does_not_wait_for_ever() -> None:
    world = World(depth=2)
    world.hear_grammar()
    world.feed(world.message(0, [1, 2], max_tokens=3, structured=ANY), world.message(1, [3, 4], max_tokens=3))
    world.workers[0].run_step()
    world.answer(0)
    missing = FromWorker(0, MasksMissing(0, 0, pack_int32([0])))
    for _ in range(59):
        world.wait(1.0)
        world.feed(missing)
    assert not world.hung and world.sent[0].end is None
    assert told(world, 0).now.endswith("its step waits for what the grammars of some requests allow")
    for _ in range(3):
        world.wait(1.0)
        world.feed(missing)
    assert world.sent[0].end is not None
    assert world.sent[0].end.message == "its grammar was not worked out within 60 s"
    world.without_grammar.add(0)
    world.drain()
    world.check()
    assert not world.hung


def test_a_worker_that_hangs_beside_missing_masks_is_found() -> None:
    world = World(depth=2)
    world.add(0, [1, 2], max_tokens=3, structured=ANY)
    world.wait(61.0)
    assert len(world.hung) == 1


@pytest.mark.parametrize(
    ("rows", "more", "tokens"),
    [([1], True, 2), ([0], True, 1), ([0], False, 1), ([], False, 2), ([1], False, 1), ([0, 1], False, 2)],
)
def test_answers_of_rows_that_are_not_due_are_not_believed(rows: list[int], more: bool, tokens: int) -> None:
    """Due is row 1, the one without a grammar, as a part."""
    world = World(depth=1)
    world.feed(world.message(0, [1, 2], max_tokens=3, structured=ANY), world.message(1, [3, 4], max_tokens=3))
    world.feed(FromWorker(0, ModelRunnerOutput(0, 0, pack_int32([5] * tokens), rows_i32=pack_int32(rows), more=more)))
    assert world.state.counters["refused_misfit"] == 1 and len(world.hung) == 1


def test_both_parts_of_a_step_are_one_in_the_trace() -> None:
    world = World(depth=2)
    world.feed(world.message(0, [1, 2], max_tokens=3, structured=ANY), world.message(1, [3, 4, 5], max_tokens=3))
    world.drain()
    rows = world.state.trace.rows()
    assert rows[:, 1].tolist() == list(range(len(rows))) and world.state.counters["steps"] == len(rows)
    assert rows[0, 2:4].tolist() == [0, 5] and rows[1, 2:4].tolist() == [2, 0]


def test_a_part_names_its_rows() -> None:
    world = World(depth=2)
    world.feed(world.message(0, [1, 2], max_tokens=3, structured=ANY), world.message(1, [3, 4, 5], max_tokens=3))
    world.workers[0].run_step()
    (output,) = world.workers[0].outbox
    assert output.more and unpack_int32(output.rows_i32).tolist() == [1]
