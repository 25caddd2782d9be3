"""An engine of a model of which the sizes alone are known."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from protocol.errors import ExitCode
from tests.integration.launching import SIMULATED, Engine, launch, refuse


def complete(engine: Engine, prompt: object) -> dict[str, Any]:
    body = {"prompt": prompt, "max_tokens": 6, "ignore_eos": True, "seed": 1}
    response = httpx.post(engine.address + "/v1/completions", json=body, timeout=60)
    response.raise_for_status()
    found: dict[str, Any] = response.json()
    return found


def test_it_serves_tokens_and_texts(tmp_path: Path) -> None:
    flags = ("--model", "gemma-3-270m", "--load-format", "dummy", "--max-model-len", "1024")
    with launch(tmp_path / "engine", *SIMULATED, *flags) as engine:
        assert "  model gemma-3-270m  " in engine.ready_line
        assert "one that makes a word of each token stands in for its tokenizer" in engine.said()
        for prompt in ([1, 2, 262_000], "Grüße"):
            found = complete(engine, prompt)
            assert found["usage"]["completion_tokens"] == 6 and found["choices"][0]["text"], found


def test_its_weights_are_not_there(tmp_path: Path) -> None:
    code, said = refuse(tmp_path, *SIMULATED, "--model", "gemma-3-270m")
    assert code == ExitCode.BAD_MODEL and "this package brings its sizes, not its weights: --load-format dummy" in said


@pytest.mark.slow
def test_it_runs_on_the_processor(tmp_path: Path) -> None:
    flags = ("--model", "gemma-3-270m", "--load-format", "dummy", "--max-model-len", "256", "--max-num-seqs", "4")
    with launch(tmp_path / "engine", "--device", "cpu", *flags, "--max-num-batched-tokens", "64") as engine:
        assert complete(engine, [5, 6, 7])["choices"]
