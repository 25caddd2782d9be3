"""A model cut between two devices that are forced out of this host, in real processes, with preemption."""

import json
from pathlib import Path

from msgspec.structs import replace

from frontend.client import Client, SamplingParams
from protocol.config import EngineConfig
from protocol.params import EngineParams
from tests.integration.launching import launch
from tests.model_writer import SERVED_TOKENIZER
from tests.tpu_worker.device_driver import Driver
from tests.tpu_worker.tiny_models import CONFIG, make_tensors, write_model
from tpu_worker.platforms.cpu import make_xla_platform
from tpu_worker.runner import JaxDevice

_PROMPTS = [list(range(1, 24)), [5, 6], list(range(90, 50, -1)), [3, 1, 4, 1, 5, 9, 2, 6, 5]]
_LENGTH = 40
_BLOCKS = 8  # of 16 positions: less than the four come to together
_BLOCK_BYTES = 2 * 2 * 16 * 1 * 32 * 4  # on a device: keys and values, layers, positions, its one head, features, bytes
_SIZES = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 96}


def test_two_shards_give_the_tokens_of_one(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", CONFIG, make_tensors(CONFIG))
    (model / "tokenizer.json").write_text(json.dumps(SERVED_TOKENIZER))
    config = EngineConfig(model_path=str(model), model_format="huggingface", served_model_names=("m",), device="cpu")
    device = JaxDevice(replace(config, **_SIZES), make_xla_platform("float32"))
    capacity = device.load(lambda *_: None)
    expected = [
        request.tokens
        for params in (EngineParams(_LENGTH), EngineParams(_LENGTH, temperature=1.0, repetition_penalty=1.2, seed=5))
        for request in Driver(device, capacity.num_blocks, capacity.block_size).run(_PROMPTS, params, chunk=16)
    ]
    device.close()
    flags = [word for name, value in _SIZES.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    flags += ["--model", str(model), "--device", "cpu", "--kv-cache-memory", str(_BLOCKS * _BLOCK_BYTES)]
    params = [
        SamplingParams(max_tokens=_LENGTH, temperature=0.0, ignore_eos=True, detokenize=False),
        SamplingParams(max_tokens=_LENGTH, temperature=1.0, repetition_penalty=1.2, seed=5, ignore_eos=True, detokenize=False),
    ]
    with launch(tmp_path, *flags, "--tensor-parallel-size", "2") as engine, Client(engine.socket) as client:
        assert "device cpu x2 (XLA kernels)" in engine.ready_line
        assert "tokens of float32 in blocks of 16" in engine.ready_line
        outputs = client.generate(_PROMPTS * 2, [one for one in params for _ in _PROMPTS], progress=False)
        assert client.stats().counters["preemptions"] > 0
    assert [output.token_ids for output in outputs] == expected
