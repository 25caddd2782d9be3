"""The Python client against a real engine whose processes end in every way."""

import signal
import threading
from pathlib import Path

import pytest

from frontend.client import Client, RequestLost, RequestOutput, SamplingParams
from protocol.errors import ExitCode
from tests.integration.launching import SIMULATED, STOP_LIMIT, launch, wait_for

LONG = SamplingParams(max_tokens=300, seed=7, ignore_eos=True)
ENDLESS = SamplingParams(seed=7, ignore_eos=True)
SLOW = ("--sim-decode-us", "2000")


def test_sigterm_lets_requests_finish_and_leaves_nothing(tmp_path: Path) -> None:
    outputs: list[RequestOutput] = []
    with launch(tmp_path, *SIMULATED, *SLOW) as engine, Client(engine.socket) as client:
        stream = client.stream("first", LONG)
        handle = client.submit("second", LONG)
        first = next(stream)
        waiter = threading.Thread(target=lambda: outputs.append(handle.result(STOP_LIMIT)))
        engine.process.send_signal(signal.SIGTERM)
        waiter.start()
        assert engine.process.wait(STOP_LIMIT) == ExitCode.OK
        waiter.join()
        assert len(outputs[0].token_ids) == 300
        assert sum(len(delta.token_ids) for delta in (first, *stream)) == 300
        assert list(engine.directory.iterdir()) == []
        assert "Traceback" not in engine.said()


def test_what_the_drain_has_no_time_for_is_lost_and_told(tmp_path: Path) -> None:
    with launch(tmp_path, *SIMULATED, *SLOW, "--drain-timeout", "0.2") as engine, Client(engine.socket) as client:
        stream = client.stream("endless", ENDLESS)
        next(stream)
        engine.process.send_signal(signal.SIGTERM)
        with pytest.raises(RequestLost, match="shut down"):
            list(stream)
        assert engine.process.wait(STOP_LIMIT) == ExitCode.OK
        assert list(engine.directory.iterdir()) == []


def test_a_killed_frontend_is_noticed_by_clients_who_do_not_wait_for_another(tmp_path: Path) -> None:
    with launch(tmp_path, *SIMULATED) as engine, Client(engine.socket, reconnect=0) as client:
        stream = client.stream("endless", ENDLESS)
        next(stream)
        engine.child("frontend").kill()
        with pytest.raises(RequestLost):
            list(stream)
        wait_for(lambda: "frontend is back" in engine.said(), "another frontend")


def test_an_engine_that_does_not_come_back_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    with launch(tmp_path, *SIMULATED) as engine, Client(engine.socket, reconnect=0.3) as client:
        stream = client.stream("endless", ENDLESS)
        next(stream)
        engine.process.kill()
        with pytest.raises(RequestLost, match=r"none answered at .* within 0.3 s"):
            list(stream)


def test_a_stream_survives_the_death_of_its_worker(tmp_path: Path) -> None:
    with launch(tmp_path, *SIMULATED, *SLOW) as engine, Client(engine.socket) as client:
        (whole,) = client.generate("survive", LONG)
        stream = client.stream("survive", LONG)
        token_ids = list(next(stream).token_ids)
        engine.child("tpu_worker-0").kill()
        for delta in stream:
            token_ids += delta.token_ids
        assert token_ids == whole.token_ids
        assert client.health().status == "ok"
        assert engine.stop() == ExitCode.OK
