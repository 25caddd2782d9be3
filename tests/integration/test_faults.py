"""Processes that stop, die again and again, or are frozen together; clients that do not read. Real processes, small limits."""

import json
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from frontend.client import Client, EngineUnavailable
from frontend.wire import WIRE_VERSION, Ask, Hello, Submit, TokenPrompt, frames
from protocol.codec import encode, pack_int32
from protocol.errors import ExitCode
from protocol.params import SamplingParams
from tests.integration.launching import SIMULATED, START_LIMIT, STOP_LIMIT, Engine, launch, start, wait_for

# Seconds: above any gap that a busy machine makes in a process's life, below what a test may take.
PULSE = 1.5
QUICK = (*SIMULATED, "--pulse-timeout", str(PULSE), "--restart-delay", "0.05")
ENDLESS = ("--sim-decode-us", "10000")  # an answer that fills the context takes more than a minute


class Stream:
    """A request over HTTP whose answer is far longer than any test, read by a thread."""

    def __init__(self, engine: Engine, **fields: object) -> None:
        self.events: list[str] = []
        self.began = threading.Event()
        self._body = {"model": "demo", "prompt": [7] * 8, "max_tokens": 8000, "ignore_eos": True, "stream": True, **fields}
        self._url = engine.address + "/v1/completions"
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with httpx.stream("POST", self._url, json=self._body, timeout=60) as response:
            for line in response.iter_lines():
                if line.startswith("data: "):
                    self.events.append(line[6:])
                    self.began.set()

    def end(self) -> list[str]:
        """All events, when the answer is complete: a connection that is cut raises in the thread, and ends without [DONE]."""
        self._thread.join(STOP_LIMIT)
        assert not self._thread.is_alive()
        assert self.events[-1:] == ["[DONE]"]
        return self.events[:-1]

    def error(self) -> str:
        """The error that ended it."""
        message: str = json.loads(self.end()[-1])["error"]["message"]
        return message


@contextmanager
def streaming(engine: Engine, **fields: object) -> Iterator[Stream]:
    """A stream that has begun."""
    stream = Stream(engine, **fields)
    assert stream.began.wait(STOP_LIMIT)
    yield stream


def health(engine: Engine) -> httpx.Response:
    return httpx.get(engine.address + "/health", timeout=5)


def test_an_idle_worker_that_is_stopped_is_replaced(tmp_path: Path) -> None:
    with launch(tmp_path, *QUICK) as engine:
        engine.child("tpu_worker-0").suspend()
        wait_for(lambda: "worker 0 is back (epoch 1)" in engine.said(), "the successor")
        assert f"worker 0 was killed: it was stopped by a signal for {PULSE:g} s" in engine.said()
        assert engine.complete([5, 6, 7], max_tokens=3)
        assert engine.stop() == ExitCode.OK


def test_a_worker_that_is_stopped_while_it_starts_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    process = start(tmp_path, "--port", "0", "--ipc", str(tmp_path / "run" / "api.sock"), *QUICK)
    try:
        launcher = psutil.Process(process.pid)
        wait_for(lambda: any("tpu_worker" in child.cmdline() for child in launcher.children()), "the worker")
        (worker,) = (child for child in launcher.children() if "tpu_worker" in child.cmdline())
        worker.suspend()
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready: ")
        assert "worker 0 was killed: it was stopped by a signal" in (tmp_path / "stderr").read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(START_LIMIT) == ExitCode.OK
    finally:
        process.kill()
        process.communicate()


def test_a_scheduler_that_is_stopped_is_told_of_and_without_restarts_the_engine_ends(tmp_path: Path) -> None:
    with (
        launch(tmp_path, *QUICK, *ENDLESS, "--max-restarts", "0") as engine,
        streaming(engine) as stream,
        Client(engine.socket) as client,
    ):
        assert health(engine).json()["status"] == "ok"
        engine.child("scheduler_proc").suspend()
        wait_for(lambda: health(engine).status_code == 503, "the unhealthy answer")
        assert client.health().status == "recovering"
        with pytest.raises(EngineUnavailable, match="the scheduler"):
            client.stats()
        assert engine.process.wait(STOP_LIMIT) == ExitCode.CRASHED
        assert stream.error() == "the engine failed before the answer was complete"
        assert f"scheduler was killed: it was stopped by a signal for {PULSE:g} s" in engine.said()
        assert "Traceback" not in engine.said()
        assert list(engine.directory.iterdir()) == []


def test_a_freeze_of_the_whole_engine_kills_nobody(tmp_path: Path) -> None:
    with launch(tmp_path, *QUICK, "--workers", "2", "--step-timeout", "0.5", "--sim-decode-us", "1000") as engine:
        everybody = [psutil.Process(engine.process.pid), *engine.children()]
        with streaming(engine, max_tokens=500) as stream:
            for process in everybody:
                process.suspend()
            with pytest.raises(subprocess.TimeoutExpired):
                engine.process.wait(PULSE + 0.5)
            for process in everybody:
                process.resume()
            finish = json.loads(stream.end()[-1])["choices"][0]["finish_reason"]
        assert finish == "length"
        # What starts behind the ready line may have come meanwhile.
        assert {one.pid for one in everybody[1:]} <= {one.pid for one in engine.children()}
        assert health(engine).json()["status"] == "ok"
        assert engine.stop() == ExitCode.OK


def test_a_worker_that_dies_again_and_again_leaves_the_engine_serving(tmp_path: Path) -> None:
    with launch(tmp_path, *QUICK, "--workers", "2") as engine:
        for epoch in range(1, 6):
            engine.child("tpu_worker-0").kill()
            wait_for(lambda epoch=epoch: f"worker 0 is back (epoch {epoch})" in engine.said(), f"epoch {epoch}")  # type: ignore[misc]
        assert "it died 5 times within 300 s, the engine serves on with 1 of 2 workers; starting it again in 0.4 s" in engine.said()
        wait_for(lambda: health(engine).json()["status"] == "ok", "both workers")
        assert engine.complete([5, 6, 7], max_tokens=3)
        assert engine.stop() == ExitCode.OK


def test_a_second_signal_ends_open_answers_with_an_error_and_is_no_failure(tmp_path: Path) -> None:
    with launch(tmp_path, *SIMULATED, *ENDLESS) as engine, streaming(engine) as stream:
        engine.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "finishing the running requests" in engine.said(), "the first signal's effect")
        engine.process.send_signal(signal.SIGTERM)
        assert engine.process.wait(STOP_LIMIT) == ExitCode.OK
        assert stream.error() == "the engine was stopped before the answer was complete"
        assert "Traceback" not in engine.said()


def test_the_end_of_a_drain_is_an_error_for_who_reads_and_no_failure_for_who_does_not(tmp_path: Path) -> None:
    answers: list[httpx.Response] = []
    with launch(tmp_path, *SIMULATED, *ENDLESS, "--drain-timeout", "0.2") as engine, socket.socket(socket.AF_UNIX) as deaf:
        deaf.connect(str(engine.socket))
        request = Submit(1, TokenPrompt(pack_int32([1, 2, 3])), SamplingParams(ignore_eos=True, max_tokens=8000))
        questions = (Ask(number, "health") for number in range(2, 20_000))  # megabytes of answers, more than any socket holds
        deaf.sendall(frames(map(encode, (Hello(WIRE_VERSION), request, *questions))))

        def ask() -> None:
            body = {"model": "demo", "prompt": [7] * 8, "max_tokens": 8000, "ignore_eos": True}
            answers.append(httpx.post(engine.address + "/v1/completions", json=body, timeout=60))

        plain = threading.Thread(target=ask)
        plain.start()
        with streaming(engine) as stream, Client(engine.socket) as client:
            wait_for(lambda: client.health().requests == 3, "everybody's requests")
            assert engine.stop() == ExitCode.OK
            assert "the engine was shut down before the answer was complete" in stream.error()
        plain.join()
        assert [answer.status_code for answer in answers] == [503]
        assert "Traceback" not in engine.said()
        assert list(engine.directory.iterdir()) == []
