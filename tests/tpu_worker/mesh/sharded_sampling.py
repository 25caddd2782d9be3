"""Samples the same logits on one, two and four shards: `python -m tests.tpu_worker.mesh.sharded_sampling CASES`.

A process of its own, since the number of devices must be said before JAX starts. Writes the cases that differ, as JSON.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh, PartitionSpec

from protocol.codec import pack_bits
from protocol.params import EngineParams
from tpu_worker.contexts import Contexts
from tpu_worker.mesh.layout import AXIS
from tpu_worker.mesh.shards import shard_platform
from tpu_worker.mesh.vocabulary import Vocabulary
from tpu_worker.platforms.cpu import make_xla_platform
from tpu_worker.platforms.platform import Sampling
from tpu_worker.platforms.tpu.products import SAMPLING
from tpu_worker.rules import SlotRules, make_rules, pack_rules, set_rules
from tpu_worker.sampler import Sampled, pack_params, sample, unpack_params

VOCAB, ROWS, LENGTH = 1003, 8, 20  # a vocabulary that neither two nor four divide
KINDS = [
    *["normal"] * 4,
    *("ties", "zeros", "zeros above", "denormal", "denormal and zeros", "borders", "huge", "few", "nothing", "inf", "nan"),
]
SHARES = (0.0, 0.01, 0.5, 1.0)  # of tokens, that masks allow


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


def draw_logits(random: np.random.Generator) -> npt.NDArray[np.float32]:
    """Rows of different kinds [ROWS, VOCAB]: equals lie on different shards, and some are equal without having the same bits."""
    logits: npt.NDArray[np.float32] = random.normal(size=(ROWS, VOCAB)).astype(np.float32)
    logits *= random.choice([1, 5], size=(ROWS, 1))
    logits[:, random.integers(0, VOCAB, 40)] = logits[:, :1]
    for row, kind in enumerate(random.choice(KINDS, ROWS)):
        match kind:
            case "ties":
                logits[row] = np.round(logits[row])  # of which some are -0.0
            case "zeros":
                logits[row] = random.choice(np.array([0.0, -0.0], np.float32), VOCAB)
            case "zeros above":
                few = random.integers(0, VOCAB, 30)
                logits[row] = -np.abs(logits[row]) - 1e-3
                logits[row, few] = random.choice(np.array([0.0, -0.0], np.float32), 30)
            case "denormal":
                logits[row] *= np.float32(1e-39)
            case "denormal and zeros":
                logits[row] = random.choice(np.array([0.0, -0.0, 1e-40, -1e-40, 1e-45, 1e-38], np.float32), VOCAB)
            case "borders":  # the last of each shard and the first of the next
                borders = [shard * -(-VOCAB // count) - side for count in (2, 4) for shard in range(1, count) for side in (0, 1)]
                logits[row, borders] = 30.0
            case "huge":
                logits[row] = np.clip(logits[row], -3.4, 3.4) * np.float32(1e38)
            case "few":
                logits[row, random.random(VOCAB) < 0.97] = -np.inf
            case "nothing":
                logits[row] = -np.inf
            case "inf":
                logits[row, random.integers(VOCAB)] = np.inf
            case "nan":
                logits[row, random.integers(VOCAB)] = random.choice([np.nan, -np.nan])
    return logits


class Chosen(NamedTuple):
    sampled: Sampled
    likeliest: jax.Array  # [ROWS]
    picked: jax.Array  # [ROWS], under masks


def build(num_shards: int, sampling: Sampling) -> Callable[..., Chosen]:
    vocabulary, platform = Vocabulary(VOCAB, num_shards), make_xla_platform()
    platform = replace(platform, products=replace(platform.products, sampling=sampling))
    products = (platform if num_shards == 1 else shard_platform(platform, vocabulary)).products

    def run(logits: jax.Array, packed: jax.Array, history: jax.Array, rules: jax.Array, bits: jax.Array) -> Chosen:
        rows = jnp.arange(ROWS)
        contexts = Contexts(history, rows, jnp.full(ROWS, LENGTH, jnp.int32))
        likeliest = products.greedy(logits, jnp.int32(ROWS))
        sampled = sample(logits, likeliest, unpack_params(packed), contexts, SlotRules(rules, rows), vocabulary, sampling)
        picked = products.pick(logits, rows, bits)
        return Chosen(sampled, likeliest, jnp.where(likeliest >= 0, picked, -1))  # which is asked of finite logits alone

    if num_shards == 1:
        return jax.jit(run)
    mesh = Mesh(np.array(jax.devices()[:num_shards]), (AXIS,))
    specs = (PartitionSpec(None, AXIS), *[PartitionSpec()] * 4)
    sharded: Callable[..., Chosen] = jax.jit(
        jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    )
    return sharded


def main(cases: int) -> list[Any]:
    programs = {str(num_shards): build(num_shards, Sampling()) for num_shards in (1, 2, 4)}
    programs["4 as on TPUs"] = build(4, SAMPLING)
    differ: list[Any] = []
    for seed in range(cases):
        random = np.random.default_rng(seed)
        logits, rules = draw_logits(random), make_rules(ROWS, VOCAB)
        params = [draw_params(random) for _ in range(ROWS)]
        for row, one in enumerate(params):
            if one.has_rules:
                rules = set_rules(rules, jnp.int32(row), jnp.asarray(pack_rules(one, VOCAB)))
        packed = np.stack([pack_params(LENGTH // 2, one) for one in params])
        history = random.integers(0, VOCAB, (ROWS, LENGTH + 12)).astype(np.int32)
        bits = np.stack([np.frombuffer(pack_bits(random.random(VOCAB) < share), "<u4") for share in random.choice(SHARES, ROWS)])
        found = {}
        for name, program in programs.items():
            filled = np.pad(logits, ((0, 0), (0, -VOCAB % int(name[0]))), constant_values=-np.inf)
            chosen = program(filled, packed, history, rules, bits)
            # Log-probabilities are sums in another order; ranks and candidates are not.
            found[name] = [np.asarray(array).tolist() for array in (*chosen.sampled[::2], *chosen[1:])]
        if any(one != found["1"] for one in found.values()) or found["1"][2] != greedily(logits):
            differ.append([seed, {name: [one[0], *one[2:]] for name, one in found.items()}])
    return differ


def greedily(logits: npt.NDArray[np.float32]) -> list[int]:
    """The first of the largest of each row; -1 where logits are broken. To XLA all below the smallest normal number is zero."""
    normal: npt.NDArray[np.float32] = np.where(np.abs(logits) < np.finfo(np.float32).tiny, 0, logits)
    return [int(row.argmax()) if np.isfinite(row.max()) else -1 for row in normal]


if __name__ == "__main__":
    json.dump(main(int(sys.argv[1])), sys.stdout)
