"""Log-probabilities of prompts: those of the reference, whatever chunks the prompts come in and whatever runs beside them."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol.codec import unpack_int32
from protocol.config import EngineConfig
from protocol.params import EngineParams
from tests.margins import Margins, rounding_of_logits
from tests.tpu_worker.device_driver import Driver, Running
from tests.tpu_worker.test_reference import EXPECTED, demo_model
from tests.tpu_worker.tiny_engine import tiny_config
from tests.tpu_worker.tiny_models import CONFIG, make_tensors, reference_logits, write_model
from tpu_worker.platforms.cpu import make_xla_platform
from tpu_worker.runner import JaxDevice

CASES: list[dict[str, Any]] = json.loads((Path(__file__).parent.parent / "data" / "smollm2_reference.json").read_text())["cases"]


def prepare(device: JaxDevice) -> None:
    """Waits for the program that is compiled when it is first asked for."""
    done, errors = threading.Event(), list[str]()

    def ready(error: str) -> None:
        errors.append(error)
        done.set()

    device.prepare_scores(ready)
    assert done.wait(120) and errors == [""]


@pytest.fixture(scope="module", params=["fastest", "XLA"])
def device(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JaxDevice]:
    config = tiny_config(write_model(tmp_path_factory.mktemp("model"), CONFIG, make_tensors(CONFIG)))
    device = JaxDevice(config, make_xla_platform() if request.param == "XLA" else None)
    device.load(lambda *_: None)
    prepare(device)
    yield device
    device.close()


ROUNDING = 2 * rounding_of_logits(CONFIG["num_hidden_layers"], spread=1.6)  # as for all models of this kind
PROMPT = np.random.default_rng(0).integers(0, CONFIG["vocab_size"], 100).tolist()
SCORED = EngineParams(4, prompt_logprobs=3)


def run(device: JaxDevice, prompts: list[list[int]], params: list[EngineParams], chunk: int = 10**9) -> list[Running]:
    return Driver(device, 32, 16).run(prompts, params, chunk)


def test_scores_are_those_of_the_textbook(device: JaxDevice, margins: Margins) -> None:
    (found,) = run(device, [PROMPT], [SCORED])
    logits = reference_logits(CONFIG, make_tensors(CONFIG), np.array(PROMPT, np.int32))[:-1]
    top = logits.max(-1, keepdims=True)
    logprobs = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    of_tokens = logprobs[np.arange(99), PROMPT[1:]]
    scores = found.scored()
    expected = np.concatenate([of_tokens[:, None], -np.sort(-logprobs, -1)[:, :3]], -1)
    margins.check_logprobs("tiny model, prompts", np.abs(scores - expected).ravel().tolist(), ROUNDING)
    ranks = unpack_int32(found.scores[0].ranks_i32).reshape(99, 4)
    clear = (
        np.abs(logprobs - of_tokens[:, None]).min(-1, where=np.arange(96) != np.array(PROMPT[1:])[:, None], initial=9.0)
        > 40 * ROUNDING
    )
    np.testing.assert_array_equal(ranks[clear, 0], (logprobs > of_tokens[:, None]).sum(-1)[clear] + 1)


def test_neither_chunks_nor_neighbours_change_a_bit(device: JaxDevice) -> None:
    others = [[5] * 30, PROMPT[:40], PROMPT[::-1]]
    wishes = [EngineParams(9, temperature=1.0, seed=3, logprobs=2), EngineParams(9), EngineParams(2, prompt_logprobs=0)]
    (alone,) = run(device, [PROMPT], [SCORED])
    beside = [run(device, [other], [wish])[0] for other, wish in zip(others, wishes, strict=True)]
    for chunk in (1, 7, 31):
        together = run(device, [PROMPT, *others], [SCORED, *wishes], chunk)
        for one, expected in zip(together, [alone, *beside], strict=True):
            assert one.tokens == expected.tokens and one.logprobs == expected.logprobs
        np.testing.assert_array_equal(together[0].scored(), alone.scored())
        np.testing.assert_array_equal(together[3].scored(), beside[2].scored())


def test_a_prompt_of_one_token_has_no_scores(device: JaxDevice) -> None:
    assert run(device, [[7]], [SCORED])[0].scores == []


@pytest.mark.slow
def test_a_multiple_choice_task_as_evaluations_do_it(margins: Margins) -> None:
    """Continuations as prompts: their log-probabilities are those of the reference, and each case prefers its own."""
    cases = [{**case, "tokens": case["tokens"][:12], "logprobs": case["logprobs"][:12]} for case in CASES[:8:2]]
    config = EngineConfig(
        model_path=demo_model(),
        model_format="gguf",
        served_model_names=("demo",),
        device="cpu",
        max_num_seqs=16,
        max_num_batched_tokens=512,
        max_model_len=256,
    )
    device = JaxDevice(config)
    capacity = device.load(lambda *_: None)
    try:
        prepare(device)
        prompts = [case["prompt"] + choice["tokens"] for case in cases for choice in cases]
        found = Driver(device, capacity.num_blocks, capacity.block_size).run(prompts, EngineParams(1, prompt_logprobs=1), 50)
    finally:
        device.close()
    scores = [one.scored()[-12:] for one in found]
    sums = np.array([score[:, 0].sum() for score in scores]).reshape(len(cases), len(cases))
    np.testing.assert_array_equal(sums.argmax(-1), np.arange(len(cases)))
    own = [scores[index * (len(cases) + 1)] for index in range(len(cases))]
    errors = np.concatenate([np.abs(score[:, 0] - case["logprobs"]) for score, case in zip(own, cases, strict=True)])
    margins.check_logprobs("demo model, prompts", errors.tolist(), EXPECTED)
    assert (own[0][:, 0] == own[0][:, 1]).mean() > 0.9  # greedy as the reference was
