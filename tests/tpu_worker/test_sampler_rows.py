"""A row is by itself: whatever shares its batch, it gets the bits that it gets alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol.codec import pack_bits
from protocol.params import EngineParams
from tests.tpu_worker.compiler import needs_compiler
from tests.tpu_worker.device_driver import Driver
from tests.tpu_worker.tiny_engine import tiny_config
from tests.tpu_worker.tiny_models import CONFIG, make_tensors, write_model
from tpu_worker import sampler
from tpu_worker.device import StepPlan
from tpu_worker.inputs import SlotState, pack_step
from tpu_worker.platforms.cpu import make_xla_platform, products
from tpu_worker.program import resample
from tpu_worker.rules import pack_rules, rules_width
from tpu_worker.runner import JaxDevice

VOCAB, LENGTH, SLOTS = 211, 600, 20  # neither is a multiple of a vector
EMPTY = np.empty(0, np.int32)

run = jax.jit(resample)


@dataclass(frozen=True)
class Row:
    """A request whose next token is sampled. `kind` and `draw` decide its logits and its context."""

    params: EngineParams
    kind: str = "normal"
    draw: int = 0
    length: int = 20  # tokens known, of which the first `num_prompt` are the prompt
    num_prompt: int = 5

    def logits(self) -> npt.NDArray[np.float32]:
        random = np.random.default_rng(self.draw)
        x: npt.NDArray[Any] = random.normal(0, 3, VOCAB)
        match self.kind:
            case "ties":
                x = np.round(x)
            case "zeros":
                x = random.choice([0.0, -0.0], VOCAB)
            case "denormal":
                x *= 1e-40
            case "huge":
                x = np.clip(x * 1e38, -3.4e38, 3.4e38)
            case "few":
                x[random.random(VOCAB) < 0.97] = -np.inf
            case "nan":
                x[random.integers(VOCAB)] = np.nan
            case "inf":
                x[random.integers(VOCAB)] = np.inf
            case "nothing":
                x[:] = -np.inf
        return x.astype(np.float32)

    def history(self) -> npt.NDArray[np.int32]:
        return np.random.default_rng(self.draw).integers(0, VOCAB, LENGTH, np.int32)


def sample(rows: Sequence[Row], slots: Sequence[int], width: int, silent: Sequence[int] = ()) -> list[tuple[bytes, ...]]:
    """The bits that each row gets, and the token that the next step reads, where they lie side by side in a step of this width.

    Rows in `silent` do not sample in this step.
    """
    params, history = np.full((SLOTS, sampler.ROW_WIDTH), -1, np.int32), np.zeros((SLOTS, LENGTH), np.int32)
    logits = np.full((width, VOCAB), np.nan, np.float32)
    rules = np.zeros((SLOTS, rules_width(VOCAB)), np.int32)
    for index, (row, slot) in enumerate(zip(rows, slots, strict=True)):
        params[slot], history[slot] = sampler.pack_params(row.num_prompt, row.params), row.history()
        if row.params.has_rules:
            rules[slot] = pack_rules(row.params, VOCAB)
        logits[index] = row.logits()
    lengths = np.array([row.length for row in rows], np.int32)
    samples = ~np.isin(np.arange(len(rows)), silent)
    where = np.array(slots, np.int32)
    plan = StepPlan(0, (), EMPTY, EMPTY, EMPTY, where, lengths - 1, np.ones_like(lengths), samples, len(rows))
    state = SlotState(jnp.asarray(history), jnp.zeros((1, SLOTS, 1), jnp.int32), jnp.asarray(params))
    after, sampled = run(state, rules, logits, sampler.greedy(jnp.asarray(logits)), pack_step(plan, width, SLOTS))
    read = np.asarray(after.history)[where, lengths]
    arrays = [np.asarray(array)[: len(rows)] for array in sampled]
    return [(read[i].tobytes(), *(array[i].tobytes() for array in arrays)) for i in range(len(rows))]


def only(*token_ids: int, vocab_size: int = VOCAB) -> bytes:
    """allowed_bits of these."""
    return pack_bits(np.isin(np.arange(vocab_size), token_ids))


TOKENS = st.integers(0, VOCAB - 1)
PARAMS = st.builds(
    EngineParams,
    max_tokens=st.just(1),
    min_tokens=st.sampled_from([0, 0, 0, 1, 2**31 - 1]),
    temperature=st.sampled_from([0.0, 5e-324, 1e-38, 9.9e-6, 1e-5, 1e-3, 0.7, 1.0, 100.0]),
    top_p=st.sampled_from([1.0, 1.0, 1 - 1e-12, 0.9, 0.5, 1e-6, 1e-30, 1e-40, 5e-324]),
    top_k=st.sampled_from([0, 0, 1, 2, 7, VOCAB, VOCAB + 1, 2**31 - 1]),
    min_p=st.sampled_from([0.0, 0.0, 5e-324, 1e-40, 0.05, 1.0]),
    seed=st.integers(-(2**63), 2**63 - 1),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3, 0.01, 100.0, 1e-40, 5e-324, 1e38]),
    presence_penalty=st.sampled_from([0.0, 0.0, -0.0, 1e-40, 0.5, -2.0, 2.0]),
    frequency_penalty=st.sampled_from([0.0, 0.0, -0.0, 1e-40, 0.5, -2.0, 2.0]),
    logprobs=st.sampled_from([-1, 0, 20]),
    stop_token_ids=st.sampled_from([(), (3,), tuple(range(16)), tuple(range(40))]),
    logit_bias=st.one_of(st.just({}), st.dictionaries(TOKENS, st.sampled_from([-100.0, -3.5, 1e-40, 2.0, 100.0]), max_size=9)),
    allowed_bits=st.one_of(st.just(b""), st.lists(TOKENS, min_size=1, max_size=20).map(lambda ids: only(*ids))),
    bad_words=st.one_of(st.just(()), st.lists(st.lists(TOKENS, min_size=1, max_size=4).map(tuple), max_size=5).map(tuple)),
)
KINDS = ["normal", "ties", "zeros", "denormal", "huge", "few", "nan", "inf", "nothing"]
ROWS = st.builds(Row, PARAMS, st.sampled_from(KINDS), st.integers(0, 99), st.integers(6, LENGTH - 1), st.integers(0, 300))
PLAIN = Row(EngineParams(1, temperature=1.0, seed=7))


@settings(max_examples=100)
@given(st.lists(ROWS, min_size=2, max_size=16), st.data())
@example([Row(EngineParams(1, temperature=1e-38)), Row(EngineParams(1, temperature=1.0, top_p=0.9))], None)
@example([Row(EngineParams(1, temperature=1.0, repetition_penalty=1e-40)), Row(EngineParams(1, temperature=1.0, top_p=0.9))], None)
@example([Row(EngineParams(1), "denormal"), Row(EngineParams(1, temperature=1.0, presence_penalty=1.0))], None)
@example([PLAIN, Row(EngineParams(1, temperature=1.0, top_p=0.5), "nan"), Row(EngineParams(1, temperature=1.0), "inf")], None)
@example([PLAIN, Row(EngineParams(1, frequency_penalty=1.0), length=LENGTH - 1), Row(EngineParams(1, logprobs=20))], None)
def test_any_row_in_any_batch_gets_what_it_gets_alone(rows: list[Row], data: st.DataObject | None) -> None:
    slots = data.draw(st.permutations(range(SLOTS)))[: len(rows)] if data else range(len(rows))
    silent = data.draw(st.sets(st.integers(0, len(rows) - 1))) if data else set()
    width = data.draw(st.sampled_from([w for w in (4, 16) if w >= len(rows)])) if data else 4
    together = sample(rows, slots, width, sorted(silent))
    for index in set(range(len(rows))) - silent:
        assert together[index] == sample([rows[index]], [0], 4)[0], rows[index]


@settings(max_examples=40)
@given(ROWS, st.lists(ROWS, min_size=15, max_size=15))
def test_the_place_in_a_batch_does_not_matter(row: Row, others: list[Row]) -> None:
    """Rows are sampled a few at a time: neither which of these a row is nor which rows they are may tell."""
    assert len({sample([*others[:at], row, *others[at:]], range(16), 16)[at] for at in range(16)}) == 1


@needs_compiler
@settings(max_examples=100)
@given(st.lists(ROWS, min_size=1, max_size=8))
def test_greedy_of_all_kernels_is_one(rows: list[Row]) -> None:
    logits = np.stack([row.logits() for row in rows])
    np.testing.assert_array_equal(jax.jit(products.greedy)(logits, jnp.int32(len(rows))), jax.jit(sampler.greedy)(logits))


def test_greedy_takes_zeros_of_either_sign_for_equals() -> None:
    logits = np.full((2, VOCAB), -1.0, np.float32)
    logits[0, [9, 40]], logits[1, [9, 40]] = [-0.0, 0.0], [0.0, -0.0]
    np.testing.assert_array_equal(sampler.greedy(jnp.asarray(logits)), [9, 9])


@pytest.mark.parametrize("kind", ["nan", "inf", "nothing"])
def test_a_row_that_cannot_be_sampled_is_told_whatever_it_asks_for(kind: str) -> None:
    for params in (EngineParams(1), EngineParams(1, temperature=1.0, top_p=0.9), EngineParams(1, presence_penalty=1.0)):
        broken, sound = sample([Row(params, kind), PLAIN], [0, 1], 4)
        assert np.frombuffer(broken[1], np.int32).tolist() == [-1]
        assert sound == sample([PLAIN], [0], 4)[0]


@pytest.mark.parametrize("platform", ["the fastest", "XLA"])
def test_requests_of_all_sorts_side_by_side_get_what_each_gets_alone(tmp_path: Path, platform: str) -> None:
    config = tiny_config(write_model(tmp_path, CONFIG, make_tensors(CONFIG)))
    wishes = [
        EngineParams(9, logprobs=3),
        EngineParams(9, temperature=1e-38, logprobs=3),
        EngineParams(9, temperature=1.0, repetition_penalty=1e-40, seed=1, logprobs=3),
        EngineParams(9, temperature=1.5, top_p=0.9, top_k=9, seed=2, logprobs=3),
        EngineParams(9, temperature=1.0, seed=3, logprobs=3),
        EngineParams(9, temperature=1e-5, min_p=1e-40, presence_penalty=2.0, frequency_penalty=-2.0, seed=4, logprobs=3),
        EngineParams(9, temperature=100.0, top_p=5e-324, min_tokens=5, stop_token_ids=(3, 4), seed=5, logprobs=3),
        EngineParams(9, logprobs=3, repetition_penalty=100.0),
        EngineParams(9, logprobs=3, logit_bias={3: 100.0, 4: 60.0}, bad_words=((3, 3), (4, 3, 4)), presence_penalty=0.1),
        EngineParams(
            9,
            temperature=2.0,
            seed=6,
            logprobs=3,
            allowed_bits=only(*range(40, 50), vocab_size=CONFIG["vocab_size"]),
            logit_bias={41: -100.0},
        ),
    ]
    device = JaxDevice(config, make_xla_platform() if platform == "XLA" else None)
    capacity = device.load(lambda *_: None)

    def outcomes(which: Sequence[int]) -> list[tuple[list[int], list[float]]]:
        driver = Driver(device, capacity.num_blocks, capacity.block_size)
        requests = [driver.request(row, list(range(20 + i, 27 + i)), wishes[i]) for row, i in enumerate(which)]
        for step in range(9):
            driver.step([(request, 1 if step else 7) for request in requests])
        driver.finish()
        return [(request.tokens, request.logprobs) for request in requests]

    try:
        alone = [outcomes([i])[0] for i in range(len(wishes))]
        for together in ([0, 1, 2, 3], [3, 2, 1, 0], [4, 5, 6, 7], [7, 3, 0], [2, 6, 1], [5, 3, 4, 1], [8, 0, 9, 4], [1, 9, 2, 8]):
            assert outcomes(together) == [alone[i] for i in together]
    finally:
        device.close()
    assert alone[8][0][:3] == [3, 4, 3] and 4 not in alone[8][0][3:4]
    assert set(alone[9][0]) <= set(range(40, 50)) - {41}
    assert alone[0][0] != alone[7][0] and len(alone[0][1]) == 9
