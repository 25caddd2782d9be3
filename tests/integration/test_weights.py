"""Weights of few bits, and random ones, in real processes: what the ready line says of them, and that answers come."""

import json
from pathlib import Path

import pytest

from frontend.client import Client, SamplingParams
from tests.integration.launching import launch
from tests.model_writer import TOKENIZER
from tests.tpu_worker.quantised_checkpoints import FORMATS, WIDE, quantise_tensors
from tests.tpu_worker.tiny_models import make_tensors, write_model

_GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True, detokenize=False)
_FLAGS = ("--device", "cpu", "--max-num-seqs", "2", "--max-num-batched-tokens", "64", "--kv-cache-memory", "8M")


def with_tokenizer(directory: Path) -> Path:
    tokenizer = {**TOKENIZER, "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    return directory


@pytest.mark.slow
def test_a_quantised_checkpoint_on_one_chip_and_on_two(tmp_path: Path) -> None:
    form = FORMATS["awq"]
    stored, _ = quantise_tensors(form, make_tensors(WIDE))
    model = with_tokenizer(write_model(tmp_path / "model", {**WIDE, "quantization_config": form.config}, stored))
    outputs = []
    for shards, said in (("1", "INT4"), ("2", "(INT4 dequantised)")):
        with launch(tmp_path, *_FLAGS, "--model", str(model), "--tensor-parallel-size", shards) as engine:
            assert said in engine.ready_line
            with Client(engine.socket) as client:
                outputs.append(client.generate([[3, 1, 4, 1, 5]], _GREEDY, progress=False)[0].token_ids)
    assert outputs[0] == outputs[1]


@pytest.mark.slow
def test_random_weights_are_the_same_after_a_restart(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({**WIDE, "quantization_config": FORMATS["fp8 blocks"].config}))
    with_tokenizer(model)
    outputs = []
    for _ in range(2):
        with launch(tmp_path, *_FLAGS, "--model", str(model), "--load-format", "dummy") as engine:
            assert "random (--load-format dummy)" in engine.ready_line
            with Client(engine.socket) as client:
                outputs.append(client.generate([[3, 1, 4, 1, 5]], _GREEDY, progress=False)[0].token_ids)
    assert outputs[0] == outputs[1]
