"""An engine that saves its compiled programs, and others that load them instead of compiling."""

import json
from pathlib import Path

import pytest

from frontend.client import Client, SamplingParams
from tests.integration.launching import launch, refuse, wait_for
from tests.model_writer import SERVED_TOKENIZER
from tests.tpu_worker.tiny_models import CONFIG, make_tensors, write_model

_PROMPTS = [list(range(1, 24)), [5, 6], list(range(90, 60, -1))]
_FLAGS = (
    *("--device", "cpu", "--max-num-seqs", "4", "--max-num-batched-tokens", "16", "--max-model-len", "96"),
    *("--kv-cache-memory", str(12 << 14), "--log-level", "debug"),
)
_PARAMS = (
    SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True, detokenize=False),
    SamplingParams(max_tokens=20, temperature=1.0, repetition_penalty=1.2, seed=5, ignore_eos=True, detokenize=False),
)
_PROGRAMS = {"step-4x4", "step-16x4", "sampler-4", "pick-4", "mask-4", "admit", "rules", "extend", "grow"}


def _run(directory: Path, *flags: str) -> tuple[list[list[int]], str]:
    """The tokens that an engine gives, once all its programs are there if it tells of them, and what it said."""
    directory.mkdir()
    with launch(directory, *flags) as engine, Client(engine.socket) as client:
        if "compiled" in " ".join(flags):
            names = [name.replace("-", " ") for name in _PROGRAMS]
            wait_for(lambda: all(f"program {name}: " in engine.said() for name in names), "all programs", limit=60)
        outputs = client.generate(_PROMPTS * 2, [one for one in _PARAMS for _ in _PROMPTS], progress=False)
        return [output.token_ids for output in outputs], engine.said()


@pytest.mark.slow
@pytest.mark.parametrize("chips", [1, 2])
def test_saved_and_loaded(tmp_path: Path, chips: int) -> None:
    """On one device in C++, where the programs call libraries by name; cut between two, in XLA's kernels."""
    model = write_model(tmp_path / "model", CONFIG, make_tensors(CONFIG))
    (model / "tokenizer.json").write_text(json.dumps(SERVED_TOKENIZER))
    flags, saved = ("--model", str(model), *_FLAGS, "--tensor-parallel-size", str(chips)), tmp_path / "saved"
    _run(tmp_path / "warming", *flags)  # now all of it is in JAX's cache, out of which nothing may be saved
    expected, said = _run(tmp_path / "saving", *flags, "--save-compiled", str(saved))
    assert said.count(": compiled") == 9 and {path.stem for path in saved.glob("*.program")} == _PROGRAMS
    found, said = _run(tmp_path / "loading", *flags, "--compiled", str(saved), "--no-compilation-cache")
    assert (said.count(": loaded"), said.count(": compiled"), said.count("compiled instead")) == (9, 0, 0)
    assert found == expected
    (saved / "step-16x4.program").write_bytes(b"")
    found, said = _run(tmp_path / "mending", *flags, "--compiled", str(saved))
    assert (said.count(": loaded"), said.count(": compiled"), said.count("program step 16x4 is compiled instead")) == (8, 1, 1)
    assert found == expected
    with launch(tmp_path / "differing", *flags, "--compiled", str(saved), "--block-size", "32") as engine:
        assert (engine.said().count(": loaded"), engine.said().count("block_size is 16 there and 32 here")) == (0, 1)
    saved.chmod(0o777)
    code, said = refuse(tmp_path / "differing", *flags, "--compiled", str(saved))
    assert code == 64 and f"--compiled {saved}: what lies there is run as it is" in said
