"""Real processes, simulated device: every token of every request is the one that follows from the request alone."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from frontend.client import Client, RequestLost, SamplingParams
from tests.integration.launching import launch
from tpu_worker.simulator import simulated_token

_VOCAB = 49152  # of the demo model, whose tokenizer the engine serves with
_FAST = ("--device", "sim", "--sim-decode-us", "50", "--sim-prefill-us-per-token", "0", "--max-model-len", "256")


def outputs(prompt: list[int], count: int, seed: int) -> list[int]:
    """The first `count` tokens after `prompt`."""
    context = list(prompt)
    for _ in range(count):
        context.append(simulated_token(context, seed, _VOCAB))
    return context[len(prompt) :]


def mixed_load(count: int) -> tuple[list[list[int]], list[SamplingParams], list[list[int]]]:
    """Prompts, parameters and the tokens that must come: mixed lengths, shared prefixes, some ended by a stop id."""
    rng = np.random.default_rng(11)
    stems = [rng.integers(0, _VOCAB, 100).tolist() for _ in range(4)]
    prompts, params, expected = [], [], []
    for _ in range(count):
        prompt = stems[rng.integers(4)][: rng.integers(0, 100)] + rng.integers(0, _VOCAB, rng.integers(1, 60)).tolist()
        seed, limit = int(rng.integers(0, 2**62)), int(rng.choice([1, 2, int(rng.integers(1, 60))]))
        tokens, stop_ids = outputs(prompt, limit, seed), []
        if rng.random() < 0.5:
            stop_ids = [int(rng.choice(tokens)), int(rng.integers(_VOCAB))]
            tokens = tokens[: min(tokens.index(stop_id) for stop_id in stop_ids if stop_id in tokens) + 1]
        prompts.append(prompt)
        params.append(
            SamplingParams(max_tokens=limit, seed=seed, stop_token_ids=stop_ids, ignore_eos=True, detokenize=False, temperature=1.0)
        )
        expected.append(tokens)
    return prompts, params, expected


@pytest.mark.parametrize(
    "flags",
    [
        ("--queue-depth", "1"),
        ("--queue-depth", "2"),
        ("--queue-depth", "3", "--no-enable-prefix-caching"),
        ("--queue-depth", "4", "--workers", "2"),
        # 64 blocks for up to 32 sequences of 14: preemption, and prompts in chunks of at most 32 tokens
        ("--queue-depth", "3", "--max-num-seqs", "32", "--max-num-batched-tokens", "64", "--kv-cache-memory", str(64 * 16 * 8)),
    ],
    ids=["depth-1", "depth-2", "depth-3-no-cache", "depth-4-two-workers", "depth-3-scarce"],
)
def test_a_thousand_requests(tmp_path: Path, flags: tuple[str, ...]) -> None:
    prompts, params, expected = mixed_load(1000)
    with launch(tmp_path, *_FAST, *flags) as engine, Client(engine.socket) as client:
        before = client.stats().counters["generation_tokens"]  # the engine tries itself out
        answers = client.generate(prompts, params, progress=False)
        counters = client.stats().counters
        idle = client.stats().workers
    assert [answer.token_ids for answer in answers] == expected
    assert counters["generation_tokens"] - before == sum(map(len, expected))
    assert all(worker.running == 0 and worker.blocks_free == worker.blocks and worker.in_flight == 0 for worker in idle)
    assert counters.get("malformed_frames", 0) == 0 and not any(name.startswith("refused") for name in counters)
    if "--kv-cache-memory" in flags:
        assert counters["preemptions"] > 0


def wait_until_idle(client: Client) -> None:
    """Returns once every slot and block is back."""
    deadline = time.monotonic() + 30
    while not all(w.running == 0 and w.in_flight == 0 and w.blocks_free == w.blocks for w in client.stats().workers):
        assert time.monotonic() < deadline, f"never idle: {client.stats()}"


@pytest.mark.parametrize("depth", [1, 3])
def test_what_ends_early_shows_nothing_more_and_gives_everything_back(tmp_path: Path, depth: int) -> None:
    with launch(tmp_path, *_FAST, "--queue-depth", str(depth)) as engine:
        with Client(engine.socket) as client:
            plain = client.generate("Once upon a time", SamplingParams(max_tokens=60, seed=5, ignore_eos=True))[0]
            stop = plain.text[40:46]
            cut = client.generate("Once upon a time", SamplingParams(max_tokens=60, seed=5, ignore_eos=True, stop=[stop]))[0]
            assert cut.text == plain.text[: plain.text.index(stop)] and cut.finish_reason == "stop"
            assert cut.token_ids == plain.token_ids[: len(cut.token_ids)] and len(cut.token_ids) < 60
            for _ in client.stream("Once upon a time", SamplingParams(seed=5, ignore_eos=True)):
                break  # leaving the loop aborts the request
            handle = client.submit("Once upon a time", SamplingParams(seed=5, ignore_eos=True))
            handle.cancel()
            with pytest.raises(RequestLost):
                handle.result()
            wait_until_idle(client)
        leaver = Client(engine.socket)
        leaver.submit("Once upon a time", SamplingParams(seed=5, ignore_eos=True))
        leaver.close()  # a disconnect while steps are in flight
        with Client(engine.socket) as client:
            wait_until_idle(client)
            again = client.generate("Once upon a time", SamplingParams(max_tokens=60, seed=5, ignore_eos=True))[0]
            assert again.token_ids == plain.token_ids


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_a_device_that_dies_or_never_answers_in_the_middle_of_a_step(tmp_path: Path, how: signal.Signals) -> None:
    slow = ("--device", "sim", "--sim-decode-us", "20000", "--max-model-len", "256", "--step-timeout", "2")
    with launch(tmp_path, *slow, "--workers", "2") as engine, Client(engine.socket) as client:
        prompts = [[i + 1] * 20 for i in range(8)]
        handles = [
            client.submit(prompt, SamplingParams(max_tokens=50, seed=i, ignore_eos=True)) for i, prompt in enumerate(prompts)
        ]
        while client.stats().counters.get("generation_tokens", 0) < 40:
            pass
        os.kill(engine.child("tpu_worker-0").pid, how)
        answers = [handle.result(60) for handle in handles]
        assert [answer.token_ids for answer in answers] == [outputs(prompt, 50, seed) for seed, prompt in enumerate(prompts)]
        deadline = time.monotonic() + 30
        while client.health().workers < 2:
            assert time.monotonic() < deadline, "the worker was not replaced"
