"""Real processes serve a model of a family that another distribution brings."""

import json
from pathlib import Path

import numpy as np
import pytest

from frontend.client import Client, SamplingParams
from protocol.errors import ExitCode
from tests.integration.launching import launch, refuse
from tests.margins import Margins
from tests.model_writer import SERVED_TOKENIZER
from tests.outside_family import TWIN, install, twin_logits, twin_tensors
from tests.tpu_worker.models.test_families import rounding
from tests.tpu_worker.tiny_models import write_model

_PROMPT = [5, 17, 80, 3, 3, 41, 90, 12]
_FLAGS = ("--device", "cpu", "--dtype", "bfloat16", "--max-num-seqs", "4", "--max-num-batched-tokens", "64")


def write_twin(directory: Path) -> Path:
    model = write_model(directory, TWIN, twin_tensors())
    (model / "tokenizer.json").write_text(json.dumps(SERVED_TOKENIZER))
    return model


def test_the_documented_package(tmp_path: Path, margins: Margins, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(install(site)))
    params = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True, detokenize=False, logprobs=0)
    with launch(tmp_path, "--model", str(write_twin(tmp_path / "model")), *_FLAGS) as engine, Client(engine.socket) as client:
        (output,) = client.generate([_PROMPT], params, progress=False)
    logits = twin_logits(twin_tensors(), np.array([*_PROMPT, *output.token_ids], np.int32))[len(_PROMPT) - 1 : -1]
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert output.logprobs is not None and len(output.token_ids) == 24
    found = [output.logprobs[index].logprob for index in range(24)]
    errors = np.abs(np.array(found) - expected[np.arange(24), output.token_ids])
    margins.check_logprobs("twin, served", errors.tolist(), rounding(TWIN))


def test_a_broken_package_ends_the_start_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(install(site, TwinForCausalLM="twodeep_twin:MISSING")))
    code, said = refuse(tmp_path, "--model", str(write_twin(tmp_path / "model")), "--port", "0", *_FLAGS)
    assert code == ExitCode.BAD_MODEL
    assert "entry point 'TwinForCausalLM' (twodeep_twin:MISSING) of the distribution twodeep-twin 1.0: cannot be loaded" in said
