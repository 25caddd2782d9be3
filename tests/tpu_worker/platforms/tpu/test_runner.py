"""The real runner on the TPU's platform, its kernels interpreted: page sizes, tables, the cache's layout and its donation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from protocol.codec import unpack_float32
from protocol.config import EngineConfig
from protocol.params import EngineParams
from tests.margins import Margins, rounding_of_logits
from tests.tpu_worker import tiny_dense, tiny_experts
from tests.tpu_worker.device_driver import Driver, Running
from tests.tpu_worker.models.test_dense import reference_of
from tests.tpu_worker.tiny_engine import tiny_config
from tests.tpu_worker.tiny_models import CONFIG, FAMILIES, Tensors, make_tensors, write_model
from tpu_worker.device import Capacity
from tpu_worker.platforms import tpu
from tpu_worker.platforms.cache_types import CacheType
from tpu_worker.platforms.cpu import make_xla_platform
from tpu_worker.platforms.platform import Platform
from tpu_worker.runner import JaxDevice
from tpu_worker.weights.scaled_rows import NarrowType

# A decode bucket and one for all else; a chunk is smaller than a page, and the longest sequence has three.
SIZES: dict[str, Any] = {"max_num_seqs": 4, "max_num_batched_tokens": 32, "max_model_len": 144, "block_size": None}
PROMPTS = [list(range(1, 24)), [5, 6], [90 - i % 60 for i in range(120)], [3]]
PARAMS = EngineParams(14, logprobs=2)


def run(config: EngineConfig, platform: Platform, chunk: int) -> tuple[Capacity, list[Running]]:
    device = JaxDevice(config, platform)
    capacity = device.load(lambda *_: None)
    try:
        driver = Driver(device, capacity.num_blocks, capacity.block_size, depth=2, num_groups=len(capacity.windows))
        return capacity, driver.run(PROMPTS, PARAMS, chunk)
    finally:
        device.close()


def check_same(
    margins: Margins,
    path: Path,
    model: Mapping[str, Any],
    tensors: Tensors,
    platform: Platform | None = None,
    name: str = "TPU",
    kept: CacheType = "bfloat16",
    narrows_to: NarrowType | None = None,
) -> Capacity:
    """The same tokens as XLA's attention, up to where its two likeliest candidates are as good as tied.

    platform: None is the TPU's. name: for what the errors are reported as.
    """
    config = tiny_config(write_model(path, model, tensors), **SIZES, kv_cache_memory=8 << 20)
    if platform is None:
        products = tpu.make_products(narrows_to=narrows_to)
        platform = tpu.make_platform(None, {model["head_dim"]}, model["num_key_value_heads"], kept, products, interpret=True)
    capacity, found = run(config, platform, chunk=11)
    _, expected = run(config, make_xla_platform(kept=kept, narrows_to=narrows_to), chunk=11)
    rounding = 2 * rounding_of_logits(model["num_hidden_layers"], spread=1.6)
    errors = []
    for ours, theirs in zip(found, expected, strict=True):
        same = next((i for i, pair in enumerate(zip(ours.tokens, theirs.tokens, strict=True)) if pair[0] != pair[1]), None)
        errors += [a - b for a, b in zip(ours.logprobs[:same], theirs.logprobs[:same], strict=True)]
        if same is not None:
            first, second = unpack_float32(theirs.candidates[same].logprobs_f32)
            margins.check(f"{name} platform: ties", first - second, 10 * rounding)
    margins.check_logprobs(f"{name} platform", errors, rounding)
    # In eight bits a last bit of bfloat16 may become a whole step, so that more candidates are as good as tied.
    assert len(errors) >= len(PROMPTS) * PARAMS.max_tokens * (3 / 4 if kept == "bfloat16" else 1 / 2)
    return capacity


@pytest.mark.slow
def test_same_tokens_as_without_its_kernels(margins: Margins, tmp_path: Path) -> None:
    capacity = check_same(margins, tmp_path, CONFIG, make_tensors(CONFIG))
    assert capacity.block_size == 128 and capacity.num_blocks == 4 * 2
    assert capacity.description == "cpu (Pallas kernels)"


@pytest.mark.slow
def test_same_tokens_in_eight_bits(margins: Margins, tmp_path: Path) -> None:
    capacity = check_same(margins, tmp_path, CONFIG, make_tensors(CONFIG), kept="int8", narrows_to="fp8")
    assert (capacity.kv_cache_dtype, capacity.block_size) == ("int8", 256)
    assert capacity.weights.startswith("fp8")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma2", "gpt_oss", "qwen2"])
def test_same_tokens_of_windows_caps_sinks_and_tied_embeddings(margins: Margins, tmp_path: Path, family: str) -> None:
    """Gemma 2 caps scores and has windows, gpt-oss has sinks; the embeddings of Qwen 2 and Gemma 2 are tied."""
    if family == "gpt_oss":
        model = tiny_experts.FAMILIES[family]
        tensors = tiny_experts.make_tensors(model)
    elif family == "qwen2":
        model = FAMILIES[family]
        tensors = make_tensors(model)
    else:
        model = tiny_dense.FAMILIES[family]
        tensors = reference_of(family)[1]
    check_same(margins, tmp_path, model, tensors)
