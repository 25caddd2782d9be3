"""The simulated device: its tokens follow from the whole context, its time from the plan, and it runs steps one after another."""

import dataclasses
import itertools
import time

import numpy as np
import pytest

from protocol.codec import Int32Array, unpack_float32
from protocol.config import EngineConfig, SimulatedTimes
from protocol.errors import CapacityError, ConfigError
from protocol.params import EngineParams, Pooling
from tpu_worker.device import Admission, PooledRow, StepPlan
from tpu_worker.simulator import SimulatedDevice, simulated_embedding, simulated_token

_NONE = np.empty(0, np.int32)


def device(times: SimulatedTimes = SimulatedTimes(0, 0, 0), **fields: object) -> SimulatedDevice:
    config = EngineConfig(
        model_path="",
        model_format="gguf",
        served_model_names=("m",),
        device="sim",
        block_size=4,
        max_num_seqs=4,
        simulated=times,
        **fields,  # type: ignore[arg-type]
    )
    return SimulatedDevice(config, vocab_size=1000, max_model_len=64)


def ints(*values: int) -> Int32Array:
    return np.array(values, np.int32)


def prefill(
    tokens: list[int], blocks: list[int], *, slot: int = 0, start: int = 0, count: int | None = None, seed: int = 0
) -> StepPlan:
    count = len(tokens) - start if count is None else count
    admission = Admission(slot, ints(*tokens), (ints(*blocks),), len(tokens), EngineParams(max_tokens=9, seed=seed))
    samples = np.array([start + count >= len(tokens)])
    return StepPlan(0, (admission,), _NONE, _NONE, _NONE, ints(slot), ints(start), ints(count), samples, 0)


def decode(*slots_and_starts: tuple[int, int]) -> StepPlan:
    slots, starts = zip(*slots_and_starts, strict=True)
    ones = np.ones(len(slots), np.int32)
    return StepPlan(1, (), _NONE, _NONE, _NONE, ints(*slots), ints(*starts), ones, ones.astype(bool), len(ones))


def test_tokens_can_be_worked_out_from_the_context() -> None:
    sim, context = device(), [5, 6, 7, 8, 9]
    context.append(int(sim.execute(prefill(context, [3, 1, 2, 0], seed=11))[0]))
    assert context[-1] == simulated_token(context[:-1], 11, 1000)
    for _ in range(9):
        context.append(int(sim.execute(decode((0, len(context) - 1)))[0]))
        assert context[-1] == simulated_token(context[:-1], 11, 1000)


def test_tokens_depend_on_every_token_every_position_and_the_seed() -> None:
    context = list(range(20))
    base = simulated_token(context, 0, 2**31 - 1)
    changed = [simulated_token([*context[:i], 99, *context[i + 1 :]], 0, 2**31 - 1) for i in range(20)]
    swapped = simulated_token(context[1::-1] + context[2:], 0, 2**31 - 1)
    assert len({base, swapped, simulated_token(context, 1, 2**31 - 1), simulated_token(context[1:], 0, 2**31 - 1), *changed}) == 24


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_block_overwritten_by_another_request_shows(victim: int) -> None:
    sim, tokens = device(), list(range(12))
    right = int(sim.execute(prefill(tokens, [0, 1, 2, 3]))[0])
    sim.execute(prefill([77], [victim], slot=1))
    wrong = int(sim.execute(prefill(tokens, [0, 1, 2, 3], start=11))[0]) if victim < 2 else int(sim.execute(decode((0, 12)))[0])
    expected = right if victim < 2 else simulated_token([*tokens, right], 0, 1000)
    assert wrong != expected


def test_a_wrong_position_shows() -> None:
    sim, tokens = device(), list(range(6))
    first = int(sim.execute(prefill(tokens, [0, 1, 2, 3]))[0])
    assert int(sim.execute(decode((0, 7)))[0]) != simulated_token([*tokens, first], 0, 1000)


def test_time_adds_up_and_steps_queue() -> None:
    sim = device(SimulatedTimes(prefill_us_per_token=1000, decode_us=5000, decode_us_per_seq=1000))
    first, second = sim.forward(prefill(list(range(8)), [0, 1, 2, 3])), sim.forward(decode((0, 8)))
    assert first.finished_ns - first.started_ns == 8_000_000
    assert second.started_ns == first.finished_ns and second.finished_ns - second.started_ns == 6_000_000


def test_running_takes_no_processor_time() -> None:
    sim = device(SimulatedTimes(decode_us=200_000))
    sim.execute(prefill([1, 2], [0]))
    handle = sim.forward(decode((0, 2)))
    before = time.thread_time()
    result = sim.collect(handle)
    assert time.monotonic_ns() >= handle.finished_ns == handle.started_ns + 200_000_000
    assert time.thread_time() - before < 0.05
    assert result.token_ids.tolist() == [simulated_token([1, 2, simulated_token([1, 2], 0, 1000)], 0, 1000)]


def test_close_wakes_a_running_step() -> None:
    sim = device(SimulatedTimes(decode_us=3_600_000_000 / 4))
    sim.execute(prefill([1, 2], [0]))
    handle = sim.forward(decode((0, 2)))
    sim.close()
    assert len(sim.collect(handle).token_ids) == 1


@pytest.mark.parametrize(
    ("times", "flag"),
    [
        (SimulatedTimes(decode_us=-1), "--sim-decode-us"),
        (SimulatedTimes(prefill_us_per_token=-0.1), "--sim-prefill-us-per-token"),
        (SimulatedTimes(decode_us_per_seq=float("nan")), "--sim-decode-us-per-seq"),
    ],
)
def test_impossible_times_name_their_flag(times: SimulatedTimes, flag: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        device(times)


def test_a_cache_too_small_for_one_sequence_is_refused() -> None:
    with pytest.raises(CapacityError, match="needs 16"):
        device(kv_cache_memory=15 * 4 * 8)


def test_a_cache_much_larger_than_any_batch_could_use_is_cut() -> None:
    assert device(kv_cache_memory=1 << 40).load(lambda *_: None).num_blocks == 16384
    assert device(kv_cache_memory=100 * 4 * 8).load(lambda *_: None).num_blocks == 100


def test_a_batch_that_no_memory_holds_is_refused() -> None:
    config = EngineConfig(model_path="/m", model_format="gguf", served_model_names=("m",), max_num_seqs=65536)
    with pytest.raises(
        CapacityError, match="out of memory while making the simulated KV cache: .*: lower --kv-cache-memory, --max-model-len"
    ):
        SimulatedDevice(config, vocab_size=100, max_model_len=2**31 - 2)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("cuts", [(0, 9), (0, 1, 5, 6, 9)])
def test_embeddings_can_be_worked_out_whatever_the_chunks(pooling: Pooling, cuts: tuple[int, ...]) -> None:
    sim, prompt = device(), [5, 6, 7, 8, 9, 10, 11, 12, 13]
    found = []
    for start, end in itertools.pairwise(cuts):
        plan = dataclasses.replace(prefill(prompt, [3, 1, 2], start=start, count=end - start), pooled=(PooledRow(0, pooling),))
        if start:
            plan = dataclasses.replace(plan, admissions=())
        sim.execute(plan)
        found += list(sim.score(plan).values()) if pooling == "mean" or end == 9 else []
    (scores,) = found
    expected = simulated_embedding(prompt, pooling)
    np.testing.assert_array_equal(unpack_float32(scores.embedding_f32), expected)
    assert expected.std() > 0.05 and not np.array_equal(expected, simulated_embedding([*prompt[:-1], 14], pooling))
