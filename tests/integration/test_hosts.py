"""A worker over two hosts, which are two launchers on this one: real processes with two forced devices each, over loopback."""

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from frontend.client import Client, RequestOutput, SamplingParams
from protocol.errors import ExitCode
from tests.integration.launching import STOP_LIMIT, Engine, launch, start
from tests.model_writer import SERVED_TOKENIZER
from tests.tpu_worker.tiny_models import CONFIG, make_tensors, write_model

pytestmark = pytest.mark.slow

_PROMPTS = [list(range(1, 24)), [5, 6], list(range(90, 50, -1)), [3, 1, 4, 1, 5, 9, 2, 6, 5]]
_LENGTH = 40
_BLOCKS = 8  # of 16 positions: less than the four come to together
_BLOCK_BYTES = 2 * 2 * 16 * 1 * 32 * 4  # on a device: keys and values, layers, positions, its one head, features, bytes
_FLAGS = (
    "--device", "cpu", "--tensor-parallel-size", "4", "--max-num-seqs", "4", "--max-num-batched-tokens", "64",
    "--max-model-len", "96", "--kv-cache-memory", str(_BLOCKS * _BLOCK_BYTES), "--restart-delay", "0.05",
)  # fmt: skip
_PARAMS = [
    SamplingParams(max_tokens=_LENGTH, temperature=0.0, ignore_eos=True, detokenize=False),
    SamplingParams(max_tokens=_LENGTH, temperature=1.0, repetition_penalty=1.2, seed=5, ignore_eos=True, detokenize=False),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = write_model(tmp_path_factory.mktemp("hosts") / "model", CONFIG, make_tensors(CONFIG))
    (path / "tokenizer.json").write_text(json.dumps(SERVED_TOKENIZER))
    return str(path)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def three_ports() -> int:
    """The first of three ports in a row that nobody has now."""
    for port in range(20000 + psutil.Process().pid % 10000, 32000, 3):
        taken = []
        try:
            for number in range(port, port + 3):
                taken.append(socket.create_server(("127.0.0.1", number)))
            return port
        except OSError:
            continue
        finally:
            for one in taken:
                one.close()
    raise AssertionError("no three ports are free")


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
    flags = (*_FLAGS, "--hosts-port", str(three_ports()), *flags)
    with (
        following(directory / "rank1", *flags) as follower,
        launch(directory / "rank0", *flags, "--hosts", "127.0.0.1,127.0.0.1", "--host-rank", "0") as engine,
    ):
        yield engine, follower


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [list(output.token_ids) for output in outputs]


def test_two_hosts_give_the_tokens_of_one_and_survive_deaths(tmp_path: Path, model: str, cache: str) -> None:
    flags = ("--model", model, "--compilation-cache", cache)
    each = [one for one in _PARAMS for _ in _PROMPTS]
    with launch(tmp_path / "alone", *_FLAGS, *flags) as engine, Client(engine.socket) as client:
        expected = tokens(client.generate(_PROMPTS * 2, each, progress=False))
    with both(tmp_path, *flags) as (engine, follower), Client(engine.socket) as client:
        assert "device cpu x4 on 2 hosts (XLA kernels)" in engine.ready_line
        assert follower.process.stdout is not None
        assert (
            follower.process.stdout.readline() == "ready: rank 1 of 2  follows 127.0.0.1  device cpu x4 on 2 hosts (XLA kernels)\n"
        )
        assert tokens(client.generate(_PROMPTS * 2, each, progress=False)) == expected
        assert client.stats().counters["preemptions"] > 0
        assert engine.stop() == ExitCode.OK
        assert follower.process.wait(STOP_LIMIT) == ExitCode.OK
        assert "rank 0 ended, and so does this one" in follower.said()
        assert "Traceback" not in engine.said() + follower.said()
