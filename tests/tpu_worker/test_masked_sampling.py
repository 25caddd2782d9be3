"""Sampling among the tokens that a mask allows: every platform's kernels, and the whole device."""

import threading
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from msgspec.structs import replace

from protocol.codec import Int32Array, UInt32Array, unpack_float32, unpack_int32
from protocol.params import EngineParams, Grammar
from tests.tpu_worker.device_driver import Driver, allowed_at, pack_bits
from tests.tpu_worker.tiny_engine import BLOCK_SIZE, tiny_config
from tests.tpu_worker.tiny_models import CONFIG, make_tensors, write_model
from tpu_worker.device import Admission, Capacity, Extension, StepPlan
from tpu_worker.platforms.cpu import make_xla_platform
from tpu_worker.platforms.cpu import products as cpu
from tpu_worker.platforms.platform import Mask, Pick
from tpu_worker.platforms.xla import products as xla
from tpu_worker.runner import JaxDevice

VOCAB = 96
PROMPTS = [list(range(1, 24)), [5, 6], list(range(90, 30, -1)), [7] * 16, [3, 1, 4, 1, 5, 9, 2, 6, 5]]
ANY = Grammar("json_object")


def masked_logits(width: int) -> tuple[np.ndarray, Int32Array, UInt32Array, np.ndarray]:
    """Logits [6, width], rows [6] of which the last two are none, masks, and what these allow as booleans [6, width]."""
    rng = np.random.default_rng(width)
    logits = rng.standard_normal((6, width)).astype(np.float32).round(1)  # with ties
    logits[2, rng.integers(width, size=width // 3)] = -np.inf
    rows = np.array([4, 0, 2, 1, 6, 9], np.int32)
    words = -(-width // 32)
    bits = np.stack(
        [
            np.zeros(words),
            rng.integers(2**32, size=words),
            np.full(words, 2**32 - 1),
            np.where(rng.random(words) < 0.5, 2**32 - 1, 2 ** rng.integers(32, size=words)),
            np.full(words, 2**32 - 1),
            np.zeros(words),
        ]
    ).astype(np.uint32)
    allowed = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")[:, :width] != 0
    return logits, rows, bits, allowed


@pytest.mark.parametrize("products", [cpu, xla], ids=["cpu", "xla"])
@pytest.mark.parametrize("width", [1, 31, 32, 50, 1000, 1024, 49152])
def test_kernels(products: object, width: int) -> None:
    pick: Pick = products.pick  # type: ignore[attr-defined]
    mask: Mask = products.mask  # type: ignore[attr-defined]
    logits, rows, bits, allowed = masked_logits(width)
    expected = logits.copy()
    tokens = np.full(6, -1)
    for index, row in enumerate(rows[:4].tolist()):
        expected[row][~allowed[index]] = -np.inf
        if np.isfinite(expected[row]).any():
            tokens[index] = expected[row].argmax()
    np.testing.assert_array_equal(jax.jit(pick)(jnp.asarray(logits), rows, bits), tokens)
    np.testing.assert_array_equal(jax.jit(mask, donate_argnums=0)(jnp.array(logits), rows, bits), expected)


@pytest.fixture(scope="module", params=[None, make_xla_platform()], ids=["fastest", "xla"])
def loaded(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[tuple[JaxDevice, Capacity]]:
    path: Path = write_model(tmp_path_factory.mktemp("tiny"), CONFIG, make_tensors(CONFIG))
    device = JaxDevice(tiny_config(path), request.param)
    yield device, device.load(lambda *_: None)
    device.close()


def driver(loaded: tuple[JaxDevice, Capacity], depth: int = 2) -> Driver:
    return Driver(loaded[0], loaded[1].num_blocks, BLOCK_SIZE, depth, VOCAB)


SAMPLED = EngineParams(14, temperature=1.0, seed=3, top_p=0.9, frequency_penalty=0.5, logprobs=2, structured=ANY)


@pytest.mark.parametrize("params", [EngineParams(14, structured=ANY), SAMPLED], ids=["greedy", "sampled"])
def test_only_allowed_tokens_whatever_the_depth_batch_and_chunks(loaded: tuple[JaxDevice, Capacity], params: EngineParams) -> None:
    """Among rows without masks, some of which draw: neither kind changes a bit of the other."""
    mixed = [params, EngineParams(14), replace(params, seed=4), EngineParams(14, temperature=1.0, seed=5, logprobs=0), params]
    alone = [driver(loaded, depth=1).run([prompt], its)[0] for prompt, its in zip(PROMPTS, mixed, strict=True)]
    for request in alone:
        for position, token in enumerate(request.tokens, len(request.prompt)):
            assert request.params.structured is None or token in allowed_at(position, VOCAB)
        assert len(request.logprobs) == (14 if request.params.logprobs >= 0 else 0)
    for depth, chunk in ((1, 1000), (2, 7), (3, 16)):
        together = driver(loaded, depth).run(PROMPTS, mixed, chunk)
        assert [r.tokens for r in together] == [r.tokens for r in alone]
        assert [r.logprobs for r in together] == [r.logprobs for r in alone]


def test_the_time_that_a_step_waits_for_masks_is_not_the_device_s(loaded: tuple[JaxDevice, Capacity]) -> None:
    device = loaded[0]
    admission = Admission(0, np.arange(1, 9, dtype=np.int32), (np.array([1], np.int32),), 8, EngineParams(4, structured=ANY))
    one, none = np.ones(1, np.int32), np.empty(0, np.int32)
    plan = StepPlan(0, (admission,), none, none, none, 0 * one, 0 * one, 8 * one, one > 0, 0, 0, None, 0 * one, 0)
    handle = device.forward(plan)
    nothing = device.collect(handle)
    assert not len(nothing.token_ids) and nothing.finished_ns > nothing.started_ns
    threading.Event().wait(0.05)  # the masks come
    sampled = device.collect(device.sample(handle, pack_bits([[7]], VOCAB)))
    assert sampled.token_ids.tolist() == [7]
    assert nothing.finished_ns < sampled.started_ns + (nothing.finished_ns - nothing.started_ns) <= sampled.finished_ns
    assert sampled.finished_ns - nothing.finished_ns >= 50_000_000
    assert sampled.started_ns > nothing.started_ns + 40_000_000


def test_greedy_takes_the_best_of_those_allowed(loaded: tuple[JaxDevice, Capacity]) -> None:
    """As its log-probabilities say, which are those among the allowed ones, as with vLLM."""
    for seen in (EngineParams(9, logprobs=5, structured=ANY), EngineParams(9, logprobs=5, temperature=1e-3, structured=ANY)):
        plain = replace(seen, logprobs=-1, temperature=0.0)
        whole, again = driver(loaded).run(PROMPTS[:1], seen)[0], driver(loaded).run(PROMPTS[:1], plain)[0]
        assert whole.tokens == again.tokens
        for position, best in enumerate(whole.candidates, len(whole.prompt)):
            ids, values = unpack_int32(best.token_ids_i32), unpack_float32(best.logprobs_f32)
            possible = set(allowed_at(position, VOCAB))
            assert best.rank == 1 and {i for i, v in zip(ids.tolist(), values.tolist(), strict=True) if v > -np.inf} <= possible
            if len(possible) <= 5:
                assert abs(np.exp(values, dtype=np.float64).sum() - 1) < 1e-5


def test_an_end_that_is_forced_comes_in_spite_of_min_tokens(loaded: tuple[JaxDevice, Capacity]) -> None:
    """Position 25 leaves one token, which is a stop id: there is nothing else to sample."""
    params = EngineParams(4, min_tokens=4, stop_token_ids=(allowed_at(25, VOCAB)[0],), structured=ANY)
    (request,) = driver(loaded).run([PROMPTS[0]], params)
    assert request.tokens[2] == allowed_at(25, VOCAB)[0] and not request.failed


def test_a_chunk_of_known_tokens_is_the_same_as_sampling_them(loaded: tuple[JaxDevice, Capacity]) -> None:
    """Also with the first token of the chunk in flight, and with more tokens than one upload holds."""
    plain = EngineParams(100, temperature=1.0, seed=9, frequency_penalty=0.3)
    (whole,) = driver(loaded).run([PROMPTS[1]], plain)
    chunked = driver(loaded, depth=3)
    request = chunked.request(0, PROMPTS[1], plain)
    chunked.step([(request, 2)])
    chunked.step([(request, 1)])
    for count in (5, 80):
        start = request.position + 1 - len(request.prompt)
        known = np.array(whole.tokens[start : start + count - 1], np.int32)
        chunked.step([(request, count)], (Extension(0, request.position + 1, known),))
        chunked.step([(request, 1)])
    chunked.finish()
    tokens = whole.tokens
    assert request.tokens == [tokens[0], tokens[1], tokens[6], tokens[7], tokens[87], tokens[88]]
