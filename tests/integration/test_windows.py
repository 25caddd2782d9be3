"""Models with windows in real processes: blocks that are given back while requests run change no token."""

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from frontend.client import Client, SamplingParams
from protocol.cache_groups import CacheGroups
from protocol.config import EngineConfig
from protocol.params import EngineParams
from tests.integration.launching import launch
from tests.model_writer import TOKENIZER
from tests.tpu_worker.device_driver import Driver
from tests.tpu_worker.tiny_models import FAMILIES, make_tensors, write_model
from tpu_worker.runner import JaxDevice

_SIZES = {"max_num_seqs": 4, "max_num_batched_tokens": 32, "max_model_len": 224}
_BLOCK_SIZE = 16
# Ten windows long, several chunks, a common beginning of some windows, and short ones beside them.
_STEM = [(7 * i) % 91 + 2 for i in range(150)]
_PROMPTS = [_STEM, [5, 6], [*_STEM[:100], *range(90, 30, -1)], list(range(90, 50, -1)), _STEM[:130], [3] * 40]
_LENGTH = 50
_MODELS = {  # config; bytes of a block: keys and values, layers of a group, positions, heads, features, bytes of float32
    "window in every layer": (FAMILIES["mistral"], 2 * 2 * _BLOCK_SIZE * 2 * 32 * 4),
    "windows in two of three layers": (FAMILIES["qwen2 with windows"], 2 * 1 * _BLOCK_SIZE * 2 * 16 * 4),
}
_GROUPS = {"window in every layer": (21,), "windows in two of three layers": (0, 21, 21)}


def _cases() -> list[object]:
    cases: list[object] = []
    for name in _MODELS:
        for depth in (1, 2, 3):
            always = depth == 2 and len(_GROUPS[name]) > 1
            cases.append(pytest.param(name, depth, marks=() if always else pytest.mark.slow))
    return cases


@pytest.mark.parametrize(("name", "depth"), _cases())
def test_tokens_are_those_of_a_cache_that_gives_nothing_back(tmp_path: Path, name: str, depth: int) -> None:
    config, block_bytes = _MODELS[name]
    model = write_model(tmp_path / "model", config, make_tensors(config))
    tokenizer = {**TOKENIZER, "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    sizes = EngineConfig(model_path=str(model), model_format="huggingface", served_model_names=("m",), device="cpu")
    device = JaxDevice(replace(sizes, **_SIZES, block_size=_BLOCK_SIZE))
    capacity = device.load(lambda *_: None)
    assert capacity.windows == _GROUPS[name]
    drawn = EngineParams(_LENGTH, temperature=1.0, seed=5)
    expected = []
    for params in (EngineParams(_LENGTH), drawn):
        for prompt in _PROMPTS:  # one after the other, each with blocks for all of its positions
            driver = Driver(device, capacity.num_blocks, _BLOCK_SIZE, num_groups=len(capacity.windows))
            expected.append(driver.run([prompt], params, chunk=32)[0].tokens)
    device.close()
    groups = CacheGroups(capacity.windows, _BLOCK_SIZE, _SIZES["max_num_batched_tokens"])
    longest = groups.demand(_SIZES["max_model_len"])
    assert longest < len(capacity.windows) * 14, "with windows, the longest sequence needs less than a block for each position"
    blocks = longest + 3
    flags = [word for key, value in _SIZES.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    flags += ["--model", str(model), "--device", "cpu", "--block-size", str(_BLOCK_SIZE), "--queue-depth", str(depth)]
    flags += ["--kv-cache-memory", str(blocks * block_bytes)]
    wanted = [
        SamplingParams(max_tokens=_LENGTH, temperature=0.0, ignore_eos=True, detokenize=False),
        SamplingParams(max_tokens=_LENGTH, temperature=1.0, seed=5, ignore_eos=True, detokenize=False),
    ]
    with launch(tmp_path, *flags) as engine, Client(engine.socket) as client:
        assert client.stats().workers[0].blocks == blocks
        for _ in range(2):  # again, with what the prefix cache has by then
            outputs = client.generate(_PROMPTS * 2, [one for one in wanted for _ in _PROMPTS], progress=False)
            assert [output.token_ids for output in outputs] == expected
        # One alone finds its whole prompt, but for the last token's block: of it, what its window sees is still there.
        before = client.stats().counters["prefix_cache_hits"]
        for _ in range(2):
            assert client.generate([_PROMPTS[0]], wanted[:1], progress=False)[0].token_ids == expected[0]
        counters, worker = client.stats().counters, client.stats().workers[0]
    assert counters["prefix_cache_hits"] > before
    assert counters["preemptions"] > 0
    assert worker.running == 0 and worker.blocks_free == worker.blocks
    assert not any(key.startswith(("breach", "refused")) for key in counters)
