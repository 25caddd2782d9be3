"""Several frontends on one port, as processes: they share the connections, and one that dies takes its own along."""

import re
import signal
from pathlib import Path

import httpx
import psutil
import pytest

from frontend.client import Client, SamplingParams
from tests.integration.launching import SIMULATED, Engine, launch

SHORT = {"model": "demo", "prompt": [1, 2, 3], "max_tokens": 4, "seed": 1, "ignore_eos": True, "return_token_ids": True}
ENDLESS = SHORT | {"max_tokens": 4000, "stream": True}
TRIES = 200  # connections until each of two frontends had one: the kernel spreads them by a hash


def frontends(engine: Engine) -> dict[str, psutil.Process]:
    return {child.name(): child for child in engine.children() if child.name().startswith("frontend")}


def holder(engine: Engine, port: int) -> str:
    """The frontend that the connection from this port is at."""
    for name, process in frontends(engine).items():
        if any(one.raddr and one.raddr.port == port for one in process.net_connections("tcp")):
            return name
    raise AssertionError("nobody holds the connection")


def a_client_of_each(engine: Engine) -> dict[str, httpx.Client]:
    """Clients with an open connection to every frontend."""
    found: dict[str, httpx.Client] = {}
    for _ in range(TRIES):
        client = httpx.Client(base_url=engine.address, timeout=60, limits=httpx.Limits(max_connections=1))
        with client.stream("GET", "/version") as response:
            port = response.extensions["network_stream"].get_extra_info("client_addr")[1]
            response.read()
        name = holder(engine, port)
        if name in found:
            client.close()
        else:
            found[name] = client
        if len(found) == len(frontends(engine)):
            return found
    raise AssertionError(f"no connection reached {frontends(engine).keys() - found.keys()}")


def wait_until_back(engine: Engine, name: str) -> None:
    """Until the launcher says so; the test's own time limit bounds it."""
    text = f"{name.replace('-', ' ')} is back (epoch 1)"
    while text not in engine.said():
        psutil.wait_procs([psutil.Process(engine.process.pid)], timeout=0.05)
        assert engine.process.poll() is None, engine.said()


def wait_until_measured(client: httpx.Client, requests: int) -> None:
    """Until a scrape tells of so many requests, whichever frontends had them; the test's own time limit bounds it."""
    while True:
        found = re.findall(r"^vllm:request_success_total\{.*\} (.*)$", client.get("/metrics").text, re.MULTILINE)
        assert sum(map(float, found)) <= requests
        if sum(map(float, found)) == requests:
            return


def test_two_frontends_answer_alike_and_end_together(tmp_path: Path) -> None:
    with launch(tmp_path, *SIMULATED, "--frontends", "2", "--max-model-len", "4096") as engine:
        assert "  frontends 2  " in engine.ready_line
        clients = a_client_of_each(engine)
        assert clients.keys() == {"frontend", "frontend-1"}
        answers = [client.post("/v1/completions", json=SHORT).json()["choices"] for client in clients.values()]
        assert answers[0] == answers[1]
        structured = SHORT | {"max_tokens": 20, "ignore_eos": False, "structured_outputs": {"choice": ["yes", "no"]}}
        for asking in clients.values():  # the grammar process answers whoever asked
            (choice,) = asking.post("/v1/completions", json=structured).json()["choices"]
            assert choice["text"] in ("yes", "no")
        assert all(client.get("/health").json()["status"] == "ok" for client in clients.values())
        with Client(engine.socket) as client:
            assert client.generate([1, 2, 3], max_tokens=4, seed=1, ignore_eos=True)[0].token_ids == answers[0][0]["token_ids"]
            assert client.stats().counters["requests"] == 5 + 1, "and the engine's own, of its start"
        for one in clients.values():
            wait_until_measured(one, 5)
            one.close()
        assert engine.stop() == 0


@pytest.mark.parametrize("victim", ["frontend", "frontend-1"])
def test_a_frontend_that_is_killed_takes_its_own_requests_along_and_comes_back(tmp_path: Path, victim: str) -> None:
    with launch(tmp_path, *SIMULATED, "--sim-decode-us", "3000", "--frontends", "2", "--max-model-len", "4096") as engine:
        clients = a_client_of_each(engine)
        survivor = next(name for name in clients if name != victim)
        with clients[victim].stream("POST", "/v1/completions", json=ENDLESS) as lost:
            events = lost.iter_lines()
            assert next(events).startswith("data: ")
            with clients[survivor].stream("POST", "/v1/completions", json=ENDLESS | {"max_tokens": 300}) as kept:
                pieces = kept.iter_lines()
                assert next(pieces).startswith("data: ")
                frontends(engine)[victim].send_signal(signal.SIGKILL)
                with pytest.raises(httpx.HTTPError):
                    list(events)
                rest = [line for line in pieces if line]
                assert rest[-1] == "data: [DONE]"
                assert '"finish_reason":"length"' in rest[-2]
        for one in clients.values():
            one.close()
        wait_until_back(engine, victim)
        again = a_client_of_each(engine)
        assert again[victim].post("/v1/completions", json=SHORT).status_code == 200
        with Client(engine.socket) as client:
            stats = client.stats()
            assert stats.counters["finished_abort"] == 1
            assert not any(worker.running for worker in stats.workers)
            assert client.generate([1, 2], max_tokens=2, ignore_eos=True)[0].finish_reason == "length"
        for one in again.values():
            one.close()
        assert engine.stop() == 0


def test_all_frontends_end_and_the_engine_outlives_them(tmp_path: Path) -> None:
    with launch(tmp_path, *SIMULATED, "--frontends", "2", "--max-model-len", "1024") as engine, Client(engine.socket) as client:
        params = SamplingParams(ignore_eos=True, seed=3)
        (undisturbed,) = client.generate([[1, 2, 3]], params)
        stream = client.stream([1, 2, 3], params)
        token_ids = list(next(stream).token_ids)
        for process in frontends(engine).values():
            process.send_signal(signal.SIGKILL)
        for delta in stream:
            token_ids += delta.token_ids
        assert token_ids == undisturbed.token_ids
        for name in ("frontend", "frontend-1"):
            wait_until_back(engine, name)
        assert engine.complete([1, 2, 3], max_tokens=5)["choices"]
        assert engine.stop() == 0
