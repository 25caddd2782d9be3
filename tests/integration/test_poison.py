"""A request that kills the worker that runs it, in a real engine: it fails alone, and everybody else gets what they asked for."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from protocol.errors import ExitCode
from tests.integration.launching import SIMULATED, Engine, launch
from tests.integration.poisoned_worker import CRASHES, IS_KILLED

POISONED = (sys.executable, "-P", str(Path(__file__).with_name("poisoned_launch.py")))
NEIGHBOURS = 15


def ask(engine: Engine, prompt: list[int]) -> httpx.Response:
    body = {"model": "demo", "prompt": prompt, "max_tokens": 20, "ignore_eos": True, "seed": 3, "return_token_ids": True}
    return httpx.post(engine.address + "/v1/completions", json=body, timeout=60)


def stream_errors(engine: Engine, prompt: list[int]) -> list[dict[str, str]]:
    """The errors among the events of a streamed answer."""
    body = {"model": "demo", "prompt": prompt, "max_tokens": 20, "stream": True}
    with httpx.stream("POST", engine.address + "/v1/completions", json=body, timeout=60) as response:
        events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
    return [event["error"] for event in events if "error" in event]


def token_ids(response: httpx.Response) -> object:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["token_ids"]


@pytest.mark.parametrize(("token", "workers", "deaths"), [(CRASHES, 2, 2), pytest.param(IS_KILLED, 1, 4, marks=pytest.mark.slow)])
def test_a_request_that_kills_fails_alone(tmp_path: Path, token: int, workers: int, deaths: int) -> None:
    flags = (*SIMULATED, "--sim-decode-us", "2000", "--restart-delay", "0.05", "--workers", str(workers))
    with launch(tmp_path, *flags, command=POISONED) as engine, ThreadPoolExecutor(NEIGHBOURS + 1) as pool:
        prompts = [[100 + index] * 20 for index in range(NEIGHBOURS)]
        expected = [token_ids(ask(engine, prompt)) for prompt in prompts]
        asked = [pool.submit(ask, engine, prompt) for prompt in prompts]
        poisoned = pool.submit(ask, engine, [5, token, 6]).result()
        assert poisoned.status_code == 500
        message = poisoned.json()["error"]["message"]
        assert "times that a worker died, at last by itself: it is given up" in message
        assert [token_ids(answer.result()) for answer in asked] == expected
        said = engine.said()
        assert said.count("starting it again") <= deaths
        assert said.count(message) == 1, "the log names the request"
        if token == CRASHES:  # another one, whose answer has begun: the status is out
            (error,) = stream_errors(engine, [5, token, 6])
            assert error["message"].split(" ran ")[1] == message.split(" ran ")[1]
        assert token_ids(ask(engine, prompts[0])) == expected[0]
        assert engine.stop() == ExitCode.OK
