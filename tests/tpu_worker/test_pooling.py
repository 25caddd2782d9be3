"""Embeddings: those of the textbook, whatever chunks a prompt comes in and whatever runs beside it."""

from collections.abc import Iterator
from typing import get_args

import numpy as np
import pytest

from protocol.codec import Float32Array
from protocol.config import Dtype
from protocol.params import EngineParams, Pooling
from tests.margins import Margins, rounding_of_logits
from tests.tpu_worker.device_driver import Driver, Running
from tests.tpu_worker.test_scoring import prepare
from tests.tpu_worker.tiny_engine import MAX_MODEL_LEN, tiny_config
from tests.tpu_worker.tiny_models import CONFIG, make_tensors, reference_states, write_model
from tpu_worker.platforms.cpu import make_xla_platform
from tpu_worker.runner import JaxDevice

PROMPT = np.random.default_rng(0).integers(0, CONFIG["vocab_size"], 100).tolist()
# Of numbers of the size of one, as the last norm leaves them; a mean has less of it, and is smaller by as much.
ROUNDING = 2 * rounding_of_logits(CONFIG["num_hidden_layers"], spread=1.0)


@pytest.fixture(scope="module", params=["bfloat16", "float32", "XLA"])
def device(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JaxDevice]:
    dtype: Dtype = "float32" if request.param == "float32" else "bfloat16"
    config = tiny_config(write_model(tmp_path_factory.mktemp("model"), CONFIG, make_tensors(CONFIG)), dtype=dtype)
    device = JaxDevice(config, make_xla_platform() if request.param == "XLA" else None)
    assert device.load(lambda *_: None).embedding_size == CONFIG["hidden_size"]
    prepare(device)
    yield device
    device.close()


def run(device: JaxDevice, prompts: list[list[int]], params: list[EngineParams], chunk: int = 10**9) -> list[Running]:
    return Driver(device, 80, 16).run(prompts, params, chunk)


def textbook(prompt: list[int], pooling: Pooling) -> Float32Array:
    states = reference_states(CONFIG, make_tensors(CONFIG), np.array(prompt, np.int32))
    pooled: Float32Array = (states[-1] if pooling == "last" else states.mean(0)).astype(np.float32)
    return pooled


@pytest.mark.every_processor
@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_embeddings_are_those_of_the_textbook(device: JaxDevice, margins: Margins, pooling: Pooling) -> None:
    prompts = [PROMPT, PROMPT[:7], PROMPT[:1], PROMPT[40:90]]
    found = np.stack([one.embedding for one in run(device, prompts, [EngineParams(1, pooling=pooling)] * 4, chunk=40)])
    expected = np.stack([textbook(prompt, pooling) for prompt in prompts]).astype(np.float64)
    margins.check_rounding(f"embeddings, {pooling}", found, expected, ROUNDING)


def test_neither_chunks_nor_neighbours_change_a_bit(device: JaxDevice) -> None:
    """Nor do embeddings change what others get, those whose prompts are scored among them."""
    prompts = [PROMPT, PROMPT, [5] * 30, PROMPT[:40], PROMPT[::-1]]
    wishes = [
        EngineParams(1, pooling="mean"),
        EngineParams(1, pooling="last"),
        EngineParams(9, temperature=1.0, seed=3, logprobs=2),
        EngineParams(2, prompt_logprobs=0),
        EngineParams(1, pooling="mean"),
    ]
    alone = [run(device, [prompt], [wish])[0] for prompt, wish in zip(prompts, wishes, strict=True)]
    for chunk in (1, 7, 24):
        together = run(device, prompts, wishes, chunk)
        for one, expected, wish in zip(together, alone, wishes, strict=True):
            assert one.tokens == expected.tokens and one.logprobs == expected.logprobs
            if wish.pooling:
                np.testing.assert_array_equal(one.embedding, expected.embedding)
        np.testing.assert_array_equal(together[3].scored(), alone[3].scored())


def test_a_slot_begins_anew_and_a_step_may_bring_many(device: JaxDevice) -> None:
    """Eight at once fill an array that is fetched; the slots held other means before, one of them unfinished."""
    wish = EngineParams(1, pooling="mean")
    left = Driver(device, 80, 16)
    left.step([(left.request(3, PROMPT, wish), 50)])
    left.finish()
    prompts = [PROMPT[start : start + 12] for start in range(0, 64, 8)]
    for one, prompt in zip(run(device, prompts, [wish] * 8), prompts, strict=True):
        np.testing.assert_array_equal(one.embedding, run(device, [prompt], [wish])[0].embedding)


def test_a_prompt_may_fill_the_context(device: JaxDevice) -> None:
    prompt = (PROMPT * 2)[:MAX_MODEL_LEN]
    (found,) = Driver(device, 80, 16).run([prompt], EngineParams(1, pooling="last"), chunk=50)
    np.testing.assert_allclose(found.embedding, textbook(prompt, "last"), atol=40 * ROUNDING)
