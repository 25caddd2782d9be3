"""Runs a tiny model on some of four devices that are forced out of this host: `… sharded_runs DIR DTYPE TOKENS_PER_STEP SHARDS …`.

SHARDS: behind colons what weights and KV cache are kept as, if in eight bits: "2:int8:fp8_e4m3".
Prompts are pooled too, and scored where steps are small.

A process of its own, since JAX must be told of the devices before it starts. Writes what came of it as JSON.
"""

import json
import os
import sys
import threading
from typing import cast, get_args

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import msgspec

from protocol.config import Dtype, EngineConfig, FloatType, KvCacheDtype, Quantization
from protocol.params import EngineParams, Grammar, Pooling
from tests.tpu_worker.device_driver import Driver
from tpu_worker.platforms.cache_types import resolve
from tpu_worker.platforms.cpu import make_xla_platform
from tpu_worker.runner import JaxDevice
from tpu_worker.weights.scaled_rows import NarrowType

PROMPTS = [list(range(1, 24)), [5, 6], list(range(90, 40, -1)), [3, 1, 4, 1, 5, 9, 2, 6, 5]]
PARAMS = {
    "greedy": EngineParams(12, logprobs=3),
    "seeded": EngineParams(12, temperature=0.9, top_p=0.9, top_k=20, seed=7),
    "penalties": EngineParams(12, temperature=0.7, repetition_penalty=1.3, frequency_penalty=0.5, presence_penalty=0.5, seed=1),
    "masked": EngineParams(12, structured=Grammar("json_object")),
    "masked and drawn": EngineParams(12, temperature=0.9, seed=3, structured=Grammar("json_object")),
    "rules": EngineParams(12, temperature=0.9, seed=2, logit_bias={7: 3.5, 9: -100.0}, bad_words=((11, 12), (13,))),
}
POOLED = {f"pooled, {pooling}": EngineParams(1, pooling=pooling) for pooling in get_args(Pooling)}
SCORED = {"scored": EngineParams(1, prompt_logprobs=2)}


def run(model: str, dtype: Dtype, budget: int, shards: str) -> dict[str, object]:
    """Tokens and log-probabilities by parameters, what the device calls itself, and the collectives of a step."""
    size, quantization, kv_cache_dtype = (*shards.split(":"), "auto", "auto")[:3]
    num_shards = int(size)
    config = EngineConfig(
        quantization=msgspec.convert(quantization, Quantization),
        kv_cache_dtype=msgspec.convert(kv_cache_dtype, KvCacheDtype),
        model_path=model,
        model_format="huggingface",
        served_model_names=("tiny",),
        device="cpu",
        tensor_parallel_size=num_shards,
        dtype=dtype,
        max_num_seqs=4,
        max_num_batched_tokens=budget,
        max_model_len=96,
    )
    floats: FloatType = "bfloat16" if dtype == "bfloat16" else "float32"
    kept, narrows_to = resolve(config.kv_cache_dtype, floats), None if quantization == "auto" else config.quantization
    alone = make_xla_platform(floats, kept, cast("NarrowType | None", narrows_to))
    device = JaxDevice(config, alone if num_shards == 1 else None)
    capacity = device.load(lambda *_: None)
    outputs: dict[str, dict[str, object]] = {}
    wanted, ready = PARAMS | POOLED | (SCORED if budget <= 4 else {}), threading.Event()
    device.prepare_scores(lambda error: ready.set() if not error else os.abort())
    ready.wait()
    for name, params in wanted.items():
        sizes, groups = (capacity.num_blocks, capacity.block_size), len(capacity.windows)
        driver = Driver(device, *sizes, depth=3, vocab_size=capacity.vocab_size, num_groups=groups)
        requests = driver.run(PROMPTS, params, chunk=budget // 4)
        outputs[name] = {"tokens": [one.tokens for one in requests], "logprobs": [one.logprobs for one in requests]}
        if params.pooling:
            outputs[name]["embeddings"] = [one.embedding.tolist() for one in requests]
        if params.prompt_logprobs >= 0:
            outputs[name]["scores"] = [one.scored().tolist() for one in requests]
    text = device.programs.step(device.programs.choose(4, 4, sampler=False)).as_text()  # type: ignore[attr-defined]
    device.close()
    return {
        "outputs": outputs,
        "description": capacity.description,
        "weights": capacity.weights,
        "kv_cache_dtype": capacity.kv_cache_dtype,
        "num_blocks": capacity.num_blocks,
        "collectives": {kind: text.count(f" {kind}(") for kind in ("all-reduce", "all-gather", "all-to-all", "collective-permute")},
    }


if __name__ == "__main__":
    model, dtype, budget, *sizes = sys.argv[1:]
    json.dump({size: run(model, msgspec.convert(dtype, Dtype), int(budget), size) for size in sizes}, sys.stdout)
