"""Samples the same logits on one, two and four shards: `python -m tests.tpu_worker.mesh.sharded_sampling CASES`.

A process of its own, since the number of devices must be said before JAX starts. Writes the cases that differ, as JSON.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from protocol.codec import pack_bits
from protocol.params import EngineParams
from tpu_worker.contexts import Contexts
from tpu_worker.mesh.layout import AXIS
from tpu_worker.mesh.vocabulary import Vocabulary
from tpu_worker.rules import SlotRules, make_rules, pack_rules, set_rules
from tpu_worker.sampler import Sampled, greedy, pack_params, sample, unpack_params

VOCAB, ROWS, LENGTH = 1003, 8, 20  # a vocabulary that neither two nor four divide


def draw_params(random: np.random.Generator) -> EngineParams:
    return EngineParams(
        1,
        seed=int(random.integers(2**63)),
        temperature=float(random.choice([0, 0.7, 1, 1.5])),
        top_p=float(random.choice([1, 0.9, 0.5, 0.1])),
        top_k=int(random.choice([0, 1, 5, 50])),
        min_p=float(random.choice([0, 0.05])),
        min_tokens=int(random.choice([0, 30])),
        stop_token_ids=tuple(map(int, random.integers(0, VOCAB, 3))),
        repetition_penalty=float(random.choice([1, 1.3])),
        presence_penalty=float(random.choice([0, 0.5])),
        frequency_penalty=float(random.choice([0, 0.2])),
        logprobs=int(random.choice([-1, 0, 5])),
        logit_bias={int(token): 2.5 for token in random.integers(0, VOCAB, 3)} if random.random() < 0.3 else {},
        bad_words=((int(random.integers(VOCAB)),),) if random.random() < 0.3 else (),
        allowed_bits=pack_bits(random.random(VOCAB) < 0.1) if random.random() < 0.2 else b"",
    )


def build(num_shards: int) -> Callable[..., Sampled]:
    vocabulary = Vocabulary(VOCAB, num_shards)

    def run(logits: jax.Array, likeliest: jax.Array, packed: jax.Array, history: jax.Array, rules: jax.Array) -> Sampled:
        rows = jnp.arange(ROWS)
        contexts = Contexts(history, rows, jnp.full(ROWS, LENGTH, jnp.int32))
        return sample(logits, likeliest, unpack_params(packed), contexts, SlotRules(rules, rows), vocabulary)

    if num_shards == 1:
        return jax.jit(run)
    mesh = Mesh(np.array(jax.devices()[:num_shards]), (AXIS,))
    specs = (PartitionSpec(None, AXIS), *[PartitionSpec()] * 4)
    sharded: Callable[..., Sampled] = jax.jit(
        jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    )
    return sharded


def main(cases: int) -> list[Any]:
    programs = {num_shards: build(num_shards) for num_shards in (1, 2, 4)}
    differ: list[Any] = []
    for seed in range(cases):
        random = np.random.default_rng(seed)
        logits = (random.normal(size=(ROWS, VOCAB)) * random.choice([1, 5], size=(ROWS, 1))).astype(np.float32)
        logits[:, random.integers(0, VOCAB, 40)] = logits[:, :1]  # equals, on different shards
        if seed % 5 == 0:
            logits[3, int(random.integers(VOCAB))] = np.nan
        rules = make_rules(ROWS, VOCAB)
        params = [draw_params(random) for _ in range(ROWS)]
        for row, one in enumerate(params):
            if one.has_rules:
                rules = set_rules(rules, jnp.int32(row), jnp.asarray(pack_rules(one, VOCAB)))
        packed = np.stack([pack_params(LENGTH // 2, one) for one in params])
        history = random.integers(0, VOCAB, (ROWS, LENGTH + 12)).astype(np.int32)
        likeliest = np.asarray(greedy(jnp.asarray(logits)))
        found = {}
        for num_shards, program in programs.items():
            filled = np.pad(logits, ((0, 0), (0, -VOCAB % num_shards)), constant_values=-np.inf)
            sampled = program(filled, likeliest, packed, history, rules)
            # Log-probabilities are sums in another order; ranks and candidates are not.
            found[num_shards] = np.asarray(sampled.token_ids).tolist(), np.asarray(sampled.ranks).tolist()
        if any(one != found[1] for one in found.values()):
            differ.append([seed, {num_shards: tokens for num_shards, (tokens, _) in found.items()}])
    return differ


if __name__ == "__main__":
    json.dump(main(int(sys.argv[1])), sys.stdout)
