"""A worker over two hosts, which are two launchers on this one: real processes with two forced devices each, over loopback."""

import asyncio
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from frontend.client import AsyncClient, Client, SamplingParams
from protocol.clock import now
from protocol.errors import ExitCode
from tests.integration.launching import STOP_LIMIT, Engine, launch, refuse, start, wait_for
from tests.model_writer import SERVED_TOKENIZER
from tests.ports import ports_in_a_row
from tests.tpu_worker.tiny_models import CONFIG, make_tensors, write_model

pytestmark = pytest.mark.slow

_PROMPTS = [list(range(1, 24)), [5, 6], list(range(90, 50, -1)), [3, 1, 4, 1, 5, 9, 2, 6, 5]]
_LENGTH = 50
_SOON = 60.0  # seconds, on a machine that has much else to do
_BLOCKS = 8  # of 16 positions: less than the four come to together
_BLOCK_BYTES = 2 * 2 * 16 * 1 * 32 * 4  # on a device: keys and values, layers, positions, its one head, features, bytes
_FLAGS = (
    "--device", "cpu", "--tensor-parallel-size", "4", "--max-num-seqs", "4", "--max-num-batched-tokens", "64",
    "--max-model-len", "96", "--kv-cache-memory", str(_BLOCKS * _BLOCK_BYTES), "--restart-delay", "0.05",
    "--served-model-name", "demo",
)  # fmt: skip
_PARAMS = [
    SamplingParams(max_tokens=_LENGTH, temperature=0.0, ignore_eos=True, detokenize=False),
    SamplingParams(max_tokens=_LENGTH, temperature=1.0, repetition_penalty=1.2, seed=5, ignore_eos=True, detokenize=False),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = write_model(tmp_path_factory.mktemp("hosts") / "model", CONFIG | {"eos_token_id": 9}, make_tensors(CONFIG))
    (path / "tokenizer.json").write_text(json.dumps(SERVED_TOKENIZER))
    return str(path)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@dataclass
class Follower:
    """The launcher of rank 1."""

    process: subprocess.Popen[str]
    directory: Path

    def said(self) -> str:
        return (self.directory / "stderr").read_text()

    def child(self) -> psutil.Process:
        (found,) = psutil.Process(self.process.pid).children()
        return found


@contextmanager
def following(directory: Path, *flags: str) -> Iterator[Follower]:
    (directory / "run").mkdir(mode=0o700, parents=True, exist_ok=True)
    process = start(directory, *flags, "--hosts", "127.0.0.1,127.0.0.1", "--host-rank", "1")
    try:
        yield Follower(process, directory)
    finally:
        process.kill()
        process.communicate()


@contextmanager
def both(directory: Path, *flags: str) -> Iterator[tuple[Engine, Follower]]:
    """Rank 0, ready, and rank 1."""
    flags = (*_FLAGS, "--hosts-port", str(ports_in_a_row(3)), *flags)
    with (
        following(directory / "rank1", *flags) as follower,
        launch(directory / "rank0", *flags, "--hosts", "127.0.0.1,127.0.0.1", "--host-rank", "0") as engine,
    ):
        yield engine, follower


async def _generate(engine: Engine, strike: Callable[[], object] | None = None) -> list[list[int]]:
    """The token ids of all requests, which run at once. `strike`: what happens as soon as each that has a slot has some."""
    outputs: list[list[int]] = [[] for _ in range(len(_PROMPTS) * len(_PARAMS))]
    async with AsyncClient(engine.socket) as client:

        async def stream(index: int) -> None:
            async for delta in client.stream(_PROMPTS[index % len(_PROMPTS)], _PARAMS[index // len(_PROMPTS)]):
                outputs[index] += delta.token_ids

        running = asyncio.gather(*(stream(index) for index in range(len(outputs))))
        if strike is not None:
            while sum(bool(output) for output in outputs) < 2:
                await asyncio.sleep(0.001)
            strike()
            assert sum(map(len, outputs)) < len(outputs) * _LENGTH
        await running
    return outputs


def _constrained(engine: Engine) -> object:
    """A request whose rows wait for masks."""
    return engine.complete([5, 6, 7], max_tokens=8, seed=3, structured_outputs={"regex": "[a-f]{3,5}"})["choices"]


def _embedding(engine: Engine) -> list[float]:
    """What needs a program that is compiled when the first asks for it."""
    answer = httpx.post(engine.address + "/v1/embeddings", json={"model": "demo", "input": [5, 6, 7]}, timeout=60)
    embedding: list[float] = answer.raise_for_status().json()["data"][0]["embedding"]
    return embedding


def _freeze(engine: Engine, follower: Follower) -> None:
    """Nothing on the host of rank 1 answers, until rank 0 has noticed."""
    frozen = [psutil.Process(follower.process.pid), follower.child()]
    gone = engine.said().count("rank 1 (127.0.0.1) is gone")
    for process in frozen:
        process.suspend()
    wait_for(lambda: engine.said().count("rank 1 (127.0.0.1) is gone") > gone, "the end of the connection")
    for process in frozen:
        process.resume()


@pytest.mark.timeout(900)  # six starts, of which none finds all that it compiles in the cache
def test_two_hosts_give_the_tokens_of_one_and_what_ends_on_one_begins_again_on_both(tmp_path: Path, model: str, cache: str) -> None:
    flags = ("--model", model, "--compilation-cache", cache, "--pulse-timeout", "1.5")
    with launch(tmp_path / "alone", *_FLAGS, *flags) as engine:
        expected, constrained, embedding = asyncio.run(_generate(engine)), _constrained(engine), _embedding(engine)
    with both(tmp_path, *flags) as (engine, follower):
        assert "device cpu x4 on 2 hosts (XLA kernels)" in engine.ready_line
        assert follower.process.stdout is not None
        line = follower.process.stdout.readline()
        assert line == "ready: rank 1 of 2  follows 127.0.0.1  device cpu x4 on 2 hosts (XLA kernels)\n"
        assert asyncio.run(_generate(engine)) == expected
        assert _constrained(engine) == constrained
        # Sums over four shards in another order: some roundings of float32, of numbers below one.
        assert _embedding(engine) == pytest.approx(embedding, abs=1e-4)
        with Client(engine.socket) as client:
            assert client.stats().counters["preemptions"] > 0

        assert asyncio.run(_generate(engine, lambda: follower.child().kill())) == expected
        assert "worker 0: rank 1 (127.0.0.1) is gone: its connection ended; starting it again" in engine.said()
        assert "follower 1 was killed by SIGKILL" in follower.said()

        assert asyncio.run(_generate(engine, lambda: engine.child("tpu_worker-0").kill())) == expected
        assert "worker 0 was killed by SIGKILL" in engine.said()
        assert "follower 1: rank 0 (127.0.0.1) is gone" in follower.said()

        assert asyncio.run(_generate(engine, lambda: threading.Thread(target=_freeze, args=(engine, follower)).start())) == expected
        assert "worker 0 is back (epoch 3)" in engine.said()
        assert _constrained(engine) == constrained

        assert engine.stop() == ExitCode.OK
        assert follower.process.wait(STOP_LIMIT) == ExitCode.OK
        assert "rank 0 ended, and so does this one" in follower.said()
        assert "Traceback" not in engine.said() + follower.said()


def refuse_first(directory: Path, *flags: str) -> tuple[int, str]:
    """`refuse`, of rank 0."""
    directory.mkdir()
    addresses = ("--port", "0", "--ipc", str(directory / "run" / "api.sock"))
    return refuse(directory, *flags, *addresses, "--hosts", "127.0.0.1,127.0.0.1", "--host-rank", "0")


def _refuse_both(tmp_path: Path, first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, str]:
    """Two ranks that must not start, with these flags of their own: what they said. Both end with the code for wrong flags."""
    ports = ("--hosts-port", str(ports_in_a_row(3)))
    with following(tmp_path / "rank1", *_FLAGS, *ports, *second) as follower:
        begun = now()
        code, said = refuse_first(tmp_path / "rank0", *_FLAGS, *ports, *first)
        assert code == ExitCode.BAD_CONFIG, said
        assert follower.process.wait(STOP_LIMIT) == ExitCode.BAD_CONFIG, follower.said()
        assert now() - begun < _SOON
        return said, follower.said()


def test_ranks_that_disagree_both_say_in_what(tmp_path: Path, model: str) -> None:
    other = write_model(tmp_path / "other", CONFIG, make_tensors(CONFIG, seed=1))
    (other / "tokenizer.json").write_text(json.dumps(SERVED_TOKENIZER))
    both_said = _refuse_both(tmp_path, ("--model", model, "--block-size", "16"), ("--model", str(other), "--block-size", "32"))
    for said in both_said:
        assert "the ranks disagree: --block-size is 16 on rank 0 (127.0.0.1), 32 on rank 1 (127.0.0.1)" in said
        assert "--model's model.safetensors is" in said
        assert "Traceback" not in said


def test_a_token_that_is_not_the_same_is_said_on_both_sides(tmp_path: Path, model: str) -> None:
    for name in ("one", "other"):
        (tmp_path / name).write_text(f"a token of more than sixteen characters: {name}\n")
    files = [("--model", model, "--hosts-token-file", str(tmp_path / name)) for name in ("one", "other")]
    for said in _refuse_both(tmp_path, *files):
        assert "--hosts-token-file" in said
        assert "Traceback" not in said
