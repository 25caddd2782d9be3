"""The real device on a tiny model: tokens fed back on the device, in any batching, depth and chunking."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from protocol.codec import unpack_float32, unpack_int32
from protocol.errors import CapacityError, ConfigError, DeviceError, ModelError
from protocol.params import EngineParams
from tests.margins import Margins, rounding_of_logits
from tests.tpu_worker.device_driver import Driver
from tests.tpu_worker.tiny_engine import BLOCK_SIZE, MAX_MODEL_LEN, tiny_config
from tests.tpu_worker.tiny_models import CONFIG, make_tensors, reference_logits, write_model
from tpu_worker.device import Admission, Capacity, StepPlan
from tpu_worker.needs import LOGPROBS, needs
from tpu_worker.platforms.cpu import make_xla_platform
from tpu_worker.runner import JaxDevice

TENSORS = make_tensors(CONFIG)
EMPTY = np.empty(0, np.int32)
# The logits of this small model spread by 1.6; its weights are larger than a trained one's, and magnify errors about twice.
ROUNDING = 2 * rounding_of_logits(CONFIG["num_hidden_layers"], spread=1.6)
PROMPTS = [list(range(1, 24)), [5, 6], list(range(90, 30, -1)), [7] * 16, [3, 1, 4, 1, 5, 9, 2, 6, 5]]


@pytest.fixture(scope="module", params=[None, make_xla_platform()], ids=["fastest", "xla"])
def loaded(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[tuple[JaxDevice, Capacity]]:
    path = write_model(tmp_path_factory.mktemp("tiny"), CONFIG, TENSORS)
    device = JaxDevice(tiny_config(path), request.param)
    phases: list[tuple[str, int, int]] = []
    capacity = device.load(lambda *progress: phases.append(progress))
    assert {phase for phase, _, _ in phases} == {"loading weights", "compiling"}
    assert all(0 <= done <= total for _, done, total in phases)
    yield device, capacity
    device.close()


@pytest.fixture
def device(loaded: tuple[JaxDevice, Capacity]) -> JaxDevice:
    return loaded[0]


def driver(loaded: tuple[JaxDevice, Capacity], depth: int = 2) -> Driver:
    return Driver(loaded[0], loaded[1].num_blocks, BLOCK_SIZE, depth)


def test_capacity(loaded: tuple[JaxDevice, Capacity]) -> None:
    capacity = loaded[1]
    assert (capacity.max_model_len, capacity.vocab_size, capacity.num_blocks) == (160, 96, 8 * 10)
    assert capacity.description.startswith("cpu")


def test_greedy_follows_the_textbook(margins: Margins, loaded: tuple[JaxDevice, Capacity]) -> None:
    """Each token is the best candidate of a float64 transformer on the same context, or nearly tied with it."""
    errors, gaps = [], []
    for request in driver(loaded).run(PROMPTS, EngineParams(12, logprobs=3)):
        sequence = np.array(request.prompt + request.tokens, np.int32)
        logits = reference_logits(CONFIG, TENSORS, sequence)
        for i, (token, logprob) in enumerate(zip(request.tokens, request.logprobs, strict=True)):
            row = logits[len(request.prompt) + i - 1]
            gaps.append(row.max() - row[token])
            errors.append(row[token] - np.log(np.exp(row).sum()) - logprob)
    margins.check_logprobs("runner", errors, ROUNDING)
    margins.check("runner: ties", max(gaps), 10 * ROUNDING)


@pytest.mark.parametrize(
    "params",
    [
        EngineParams(14),
        EngineParams(14, temperature=1.0, seed=3),
        EngineParams(14, temperature=2.0, top_p=0.9, top_k=40, seed=-9),
        EngineParams(14, temperature=1.0, repetition_penalty=1.3, frequency_penalty=0.5, presence_penalty=0.5, seed=1),
    ],
    ids=["greedy", "temperature", "filters", "penalties"],
)
def test_tokens_do_not_depend_on_depth_batch_or_chunks(loaded: tuple[JaxDevice, Capacity], params: EngineParams) -> None:
    expected = [driver(loaded, depth=1).run([prompt], params)[0].tokens for prompt in PROMPTS]
    assert len({tuple(tokens) for tokens in expected}) == len(PROMPTS)
    for depth, chunk in ((1, 1000), (2, 1000), (4, 7), (2, 16)):
        assert [r.tokens for r in driver(loaded, depth).run(PROMPTS, params, chunk)] == expected


def test_penalties_see_the_token_in_flight(loaded: tuple[JaxDevice, Capacity]) -> None:
    """No token may come twice in a row, or at all, under a penalty that outweighs every logit."""
    params = EngineParams(40, presence_penalty=2.0, frequency_penalty=2.0, repetition_penalty=100.0, temperature=0.0)
    for request in driver(loaded, depth=3).run(PROMPTS[:2], params):
        assert len(set(request.tokens)) == 40


def test_a_resumed_request_goes_on_with_the_same_tokens(loaded: tuple[JaxDevice, Capacity]) -> None:
    """After a preemption, prompt and output come back as known tokens: penalties still know where the output begins."""
    params = EngineParams(20, temperature=1.0, seed=8, frequency_penalty=1.0)
    (whole,) = driver(loaded).run([PROMPTS[0]], params)
    known = np.array(PROMPTS[0] + whole.tokens[:9], np.int32)
    blocks = np.arange(10, 20, dtype=np.int32)
    admission = Admission(6, known, (blocks,), len(PROMPTS[0]), params)
    slot, start = np.array([6], np.int32), len(known)
    device = loaded[0]
    plan = StepPlan(
        0,
        (admission,),
        EMPTY,
        EMPTY,
        EMPTY,
        slot,
        np.zeros(1, np.int32),
        np.array([start], np.int32),
        np.array([True]),
        0,
        needs(params),
    )
    handles = [device.forward(plan)]
    for i in range(10):
        ones = np.ones(1, np.int32)
        plan = StepPlan(i + 1, (), EMPTY, EMPTY, EMPTY, slot, ones * (start + i), ones, np.array([True]), 1, needs(params))
        handles.append(device.forward(plan))
    assert [int(device.collect(handle).token_ids[0]) for handle in handles] == whole.tokens[9:]


def test_block_tables_grow_by_deltas(loaded: tuple[JaxDevice, Capacity]) -> None:
    params = EngineParams(40)
    (whole,) = driver(loaded).run([PROMPTS[1]], params)
    device = loaded[0]
    admission = Admission(2, np.array(PROMPTS[1], np.int32), (np.array([33], np.int32),), 2, params)
    slot, one = np.array([2], np.int32), np.ones(1, np.int32)
    handles = [device.forward(StepPlan(0, (admission,), EMPTY, EMPTY, EMPTY, slot, one * 0, one * 2, np.array([True]), 0))]
    for position in range(2, 41):
        grown = (slot, one * (position // BLOCK_SIZE), one * (70 - position)) if position % BLOCK_SIZE == 0 else (EMPTY,) * 3
        handles.append(device.forward(StepPlan(position, (), *grown, slot, one * position, one, np.array([True]), 1)))
    assert [int(device.collect(handle).token_ids[0]) for handle in handles] == whole.tokens


def test_to_the_very_end_of_the_context(loaded: tuple[JaxDevice, Capacity]) -> None:
    prompt = (list(range(2, 92)) * 2)[: MAX_MODEL_LEN - 3]
    (request,) = driver(loaded).run([prompt], EngineParams(3), chunk=128)
    assert len(request.tokens) == 3


def test_rows_that_do_not_sample_yield_nothing(device: JaxDevice) -> None:
    admission = Admission(0, np.arange(1, 21, dtype=np.int32), (np.array([1, 2], np.int32),), 20, EngineParams(5, logprobs=1))
    plan = StepPlan(
        0,
        (admission,),
        EMPTY,
        EMPTY,
        EMPTY,
        np.array([0], np.int32),
        np.array([0], np.int32),
        np.array([8], np.int32),
        np.array([False]),
        0,
    )
    result = device.collect(device.forward(plan))
    assert len(result.token_ids) == 0 and not result.logprobs


def test_logprobs_only_where_asked(device: JaxDevice) -> None:
    asked = EngineParams(5, logprobs=4)
    rows = [(3, EngineParams(5)), (1, asked), (5, EngineParams(5, logprobs=0))]
    admissions = tuple(
        Admission(slot, np.array([9, 8, 7], np.int32), (np.array([i], np.int32),), 3, p) for i, (slot, p) in enumerate(rows)
    )
    slots = np.array([slot for slot, _ in rows], np.int32)
    three = np.full(3, 3, np.int32)
    wanted = np.array([params.logprobs for _, params in rows], np.int32)
    plan = StepPlan(0, admissions, EMPTY, EMPTY, EMPTY, slots, three * 0, three, np.ones(3, bool), 0, LOGPROBS, wanted)
    result = device.collect(device.forward(plan))
    assert set(result.logprobs) == {1, 2}
    best = result.logprobs[1]
    ids, values = unpack_int32(best.token_ids_i32), unpack_float32(best.logprobs_f32)
    assert len(ids) == 4 and ids[0] == result.token_ids[1] and best.rank == 1 and values[0] == np.float32(best.logprob)
    assert (np.diff(values) <= 0).all()
    assert unpack_int32(result.logprobs[2].token_ids_i32).tolist() == []
    expected = reference_logits(CONFIG, TENSORS, np.array([9, 8, 7], np.int32))[-1]
    assert abs(expected[ids[0]] - np.log(np.exp(expected).sum()) - best.logprob) < 10 * ROUNDING


def test_a_row_that_is_not_finite_fails_alone(tmp_path: Path) -> None:
    """Token 11 has an embedding that bfloat16 has no room for: the request that holds it is told, its neighbour notices nothing."""
    tensors = dict(TENSORS)
    embedding = tensors["model.embed_tokens.weight"].astype(np.float32)
    embedding[11] = np.finfo(np.float32).max
    tensors["model.embed_tokens.weight"] = embedding
    device = JaxDevice(replace(tiny_config(write_model(tmp_path, CONFIG, tensors)), dtype="bfloat16"))
    capacity = device.load(lambda *_: None)
    try:
        prompts = [[1, 2, 3], [4, 11, 5]]
        sound, poisoned = Driver(device, capacity.num_blocks, BLOCK_SIZE).run(prompts, EngineParams(5))
        (alone,) = Driver(device, capacity.num_blocks, BLOCK_SIZE).run(prompts[:1], EngineParams(5))
    finally:
        device.close()
    assert poisoned.failed and not sound.failed
    assert sound.tokens == alone.tokens


def test_what_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    base = tiny_config(write_model(tmp_path, CONFIG, TENSORS))
    for wrong, error, message in (
        (replace(base, model_path=str(tmp_path / "nowhere")), ModelError, "nowhere/config.json: No such file"),
        (replace(base, max_model_len=257), ConfigError, "--max-model-len 257 is more than the 256 tokens"),
        (replace(base, kv_cache_memory=100), CapacityError, "--kv-cache-memory leaves 100 bytes"),
        (replace(base, tensor_parallel_size=2), DeviceError, "--tensor-parallel-size 2: of cpu devices this worker sees 1"),
    ):
        with pytest.raises(error, match=message):
            JaxDevice(wrong).load(lambda *_: None)
