"""Where the log goes takes nothing, or nobody reads it: no engine waits for that, and none ends of it."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from protocol.errors import ExitCode
from tests.integration.launching import LAUNCH, SIMULATED, Engine, launch

_FLAGS = (*SIMULATED, "--log-format", "json", "--log-prompts", "--restart-delay", "0.05")
_LONG = "word " * 800  # what each request's line says: a pipe holds the lines of 16


@contextmanager
def a_pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    os.set_blocking(read, False)
    try:
        yield read, write
    finally:
        for fd in (read, write):
            try:
                os.close(fd)
            except OSError:
                pass  # the test did


def into(sink: str) -> Sequence[str]:
    """The command line of a launcher whose standard error goes there."""
    return ("bash", "-c", f'exec "$@" 2>{sink}', "bash", *LAUNCH)


def serves(engine: Engine) -> None:
    """Requests are answered, each with a long line, and a worker that dies is replaced."""
    with httpx.Client(base_url=engine.address, timeout=60) as client:
        for _ in range(40):
            answer = client.post("/v1/completions", json={"prompt": _LONG, "max_tokens": 2, "ignore_eos": True})
            assert answer.status_code == 200, answer.text
        engine.child("tpu_worker-0").kill()
        assert client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2}).status_code == 200
        assert client.get("/health").status_code == 200


def read_lines(fd: int) -> list[dict[str, str]]:
    data = b""
    while True:
        try:
            data += os.read(fd, 1 << 20)
        except BlockingIOError:
            return [json.loads(line) for line in data.splitlines() if line]


def test_a_log_that_is_full(tmp_path: Path) -> None:
    with launch(tmp_path, *_FLAGS, command=into("/dev/full")) as engine:
        serves(engine)
        assert engine.stop() == ExitCode.OK


def test_a_log_whose_reader_goes(tmp_path: Path) -> None:
    with a_pipe() as (read, write), launch(tmp_path, *_FLAGS, command=into(f"&{write}"), pass_fds=[write]) as engine:
        assert any(line["message"] == "frontend: ready" for line in read_lines(read))
        os.close(read)
        os.close(write)
        serves(engine)
        assert engine.stop() == ExitCode.OK


@pytest.mark.timeout(180)
def test_a_log_that_nobody_reads(tmp_path: Path) -> None:
    with a_pipe() as (read, write), launch(tmp_path, *_FLAGS, command=into(f"&{write}"), pass_fds=[write]) as engine:
        serves(engine)
        lines = read_lines(read)
        kept = [line for line in lines if line["source"] == "frontend.access"]
        assert 0 < len(kept) < 41, "the pipe held all of it: the test shows nothing"
        assert engine.complete([1, 2], max_tokens=2)
        assert engine.stop() == ExitCode.OK
        lines += read_lines(read)
    assert any("lines were left out: nobody read them" in line["message"] for line in lines)
