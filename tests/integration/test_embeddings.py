"""Embeddings from real processes: a real model on one device and cut between two, and workers that die under them."""

import json
import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from frontend.client import Client, SamplingParams
from protocol.codec import Float32Array
from protocol.params import Pooling
from tests.integration.launching import launch, wait_for
from tests.margins import Margins, rounding_of_logits
from tests.model_writer import SERVED_TOKENIZER
from tests.tpu_worker.tiny_models import CONFIG, make_tensors, reference_states, write_model
from tpu_worker.simulator import simulated_embedding

_RNG = np.random.default_rng(5)
_PROMPTS = [_RNG.integers(0, CONFIG["vocab_size"], length).tolist() for length in (1, 90, 17, 40, 3, 96, 64, 33)]
_SIZES = ("--max-num-seqs", "4", "--max-num-batched-tokens", "32", "--max-model-len", "96", "--device", "cpu")


def unit(vectors: Float32Array) -> Float32Array:
    wide = vectors.astype(np.float64)
    found: Float32Array = (wide / np.linalg.norm(wide, axis=-1, keepdims=True)).astype(np.float32)
    return found


@pytest.mark.parametrize(
    ("shards", "pooling", "dtype"), [(1, "mean", "float32"), pytest.param(2, "last", "bfloat16", marks=pytest.mark.slow)]
)
def test_a_real_model(tmp_path: Path, margins: Margins, shards: int, pooling: Pooling, dtype: str) -> None:
    """In chunks, several in a step, beside a request that decodes; the mean is what the model's own files ask for."""
    tensors = make_tensors(CONFIG)
    model = write_model(tmp_path / "model", CONFIG, tensors)
    (model / "tokenizer.json").write_text(json.dumps(SERVED_TOKENIZER))
    if pooling == "mean":
        kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
        modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds.items()]
        (model / "modules.json").write_text(json.dumps(modules))
        (model / "1_Pooling").mkdir()
        (model / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    states = [reference_states(CONFIG, tensors, np.array(prompt, np.int32)) for prompt in _PROMPTS]
    expected = unit(np.stack([one[-1] if pooling == "last" else one.mean(0) for one in states]).astype(np.float32))
    with (
        launch(tmp_path, "--model", str(model), *_SIZES, "--dtype", dtype, "--tensor-parallel-size", str(shards)) as engine,
        Client(engine.socket) as client,
    ):
        params = SamplingParams(max_tokens=80, ignore_eos=True, detokenize=False, temperature=0.0)
        beside = client.submit([1, 2, 3], params)
        found = client.embed(_PROMPTS)
        assert len(beside.result(60).token_ids) == 80
        alone = np.concatenate([client.embed(prompt) for prompt in _PROMPTS])
        answer = httpx.post(engine.address + "/v1/embeddings", json={"input": _PROMPTS}, timeout=60).json()
        np.testing.assert_array_equal([item["embedding"] for item in answer["data"]], found)
    typical = 2 * rounding_of_logits(CONFIG["num_hidden_layers"], spread=1.0) / np.sqrt(CONFIG["hidden_size"])
    if dtype == "float32":  # sums of some tens of terms, each of which is rounded
        typical *= 2.0**-16 * np.sqrt(CONFIG["intermediate_size"])
    # The shorter a mean is, the larger an error of one token's state is beside it.
    shrinks = [np.sqrt(np.mean((one[-1] if pooling == "last" else one.mean(0)) ** 2)) for one in states]
    margins.check_rounding(f"embeddings, served, {pooling}", found, expected.astype(np.float64), typical / min(1.0, *shrinks))
    if shards == 1:
        np.testing.assert_array_equal(found, alone)


@pytest.mark.parametrize(
    ("pooling", "victim"),
    [
        ("mean", "tpu_worker-0"),
        pytest.param("last", "tpu_worker-0", marks=pytest.mark.slow),
        pytest.param("mean", "scheduler_proc", marks=pytest.mark.slow),
    ],
)
def test_processes_that_die_and_scarce_blocks(tmp_path: Path, pooling: Pooling, victim: str) -> None:
    """Two workers, depth 3, chunks, preemption by those that decode; a worker or the scheduler is killed in the middle."""
    prompts = [_RNG.integers(0, 49152, int(length)).tolist() for length in _RNG.integers(1, 200, 120)]
    expected = np.stack([unit(simulated_embedding(prompt, pooling)) for prompt in prompts])
    flags = ("--device", "sim", "--sim-decode-us", "1000", "--sim-prefill-us-per-token", "20", "--max-model-len", "256")
    scarce = ("--max-num-seqs", "16", "--max-num-batched-tokens", "64", "--kv-cache-memory", str(64 * 16 * 8))
    with (
        launch(tmp_path, *flags, *scarce, "--pooling", pooling, "--workers", "2", "--queue-depth", "3") as engine,
        Client(engine.socket) as client,
    ):
        beside = [client.submit([index] * 20, SamplingParams(max_tokens=200, ignore_eos=True, seed=1)) for index in range(12)]
        body = {"input": prompts, "encoding_format": "float"}
        before = client.stats().counters["prefill_tokens"]
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(httpx.post, engine.address + "/v1/embeddings", json=body, timeout=60)
            wait_for(lambda: client.stats().counters["prefill_tokens"] > before + 1000, "some of the prompts are read")
            killed = engine.child(victim).pid
            os.kill(killed, signal.SIGKILL)
            answer = asked.result().json()
        assert all(len(one.result(60).token_ids) == 200 for one in beside)
        counters = client.stats().counters
        if victim == "scheduler_proc":
            assert engine.child(victim).pid != killed
        else:
            assert counters["worker_deaths"] == 1 and counters["replays"] > 0
        assert re.search(rf"POST /v1/embeddings 200, {sum(map(len, prompts))} \+ 0 tokens, \d+ cached, stop, ", engine.said())
    np.testing.assert_array_equal(np.array([item["embedding"] for item in answer["data"]], np.float32), expected)
