"""The line that each request has in the log of a real engine."""

import json
from pathlib import Path

import httpx

from frontend.client import Client
from frontend.server.access import in_log, shown
from frontend.server.prompts import Asked
from frontend.wire import ChatTurn, Conversation, TextPrompt, TokenPrompt
from protocol.codec import pack_int32
from tests.integration.launching import SIMULATED, launch

_FORMAT = ("--log-format", "json")


def test_each_request_has_a_line(tmp_path: Path) -> None:
    secret = "a secret that no log may hold"
    with launch(tmp_path, *SIMULATED, *_FORMAT, "--max-model-len", "1024") as engine, httpx.Client(base_url=engine.address) as http:
        body = {"prompt": [secret, "b"], "n": 2, "max_tokens": 5, "ignore_eos": True}
        http.post("/v1/completions", json=body, headers={"x-request-id": "mine"})
        http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": secret}], "temperature": -1})
        http.get("/v1/a%0Ab")
        http.get("/health")
        endless = {"prompt": "c", "max_tokens": 1000, "ignore_eos": True, "stream": True}
        with http.stream("POST", "/v1/completions", json=endless) as response:
            next(response.iter_lines())
        with Client(engine.socket) as client:
            client.generate([1, 2, 3], max_tokens=4, ignore_eos=True, seed=1)
            stream = client.stream("d", ignore_eos=True)
            next(stream)
            stream.close()
        assert engine.stop() == 0
        said = engine.said()
    lines = [json.loads(line) for line in said.splitlines()]
    assert {"worker 0: ready", "frontend: ready"} <= {line["message"] for line in lines}
    requests = [line for line in lines if line["source"] == "frontend.access"]
    assert len(requests) == 6
    mine, wrong, nowhere = requests[:3]
    whole, closed = (line for line in requests if line["client"] == "unix")
    (left,) = (line for line in requests[3:] if line["client"] != "unix")  # is noticed when it is noticed
    assert (mine["request_id"], mine["request"]) == ("mine", "POST /v1/completions")
    assert (mine["client"], mine["status"]) == ("127.0.0.1", 200)
    assert (mine["output_tokens"], mine["cached_tokens"], mine["finish_reason"]) == (20, 0, "length")
    assert mine["model"] == "SmolLM2-135M-Instruct" and 0 < mine["ttft_ms"] <= mine["duration_ms"] and mine["tpot_ms"] > 0
    assert (wrong["status"], wrong["request"]) == (400, "POST /v1/chat/completions") and "model" not in wrong
    assert (nowhere["status"], nowhere["request"]) == (404, "GET /v1/a?b")
    assert (left["status"], left["finish_reason"]) == (200, "abort") and left["output_tokens"] < 1000
    assert (whole["client"], whole["status"], whole["prompt_tokens"], whole["output_tokens"]) == ("unix", 200, 3, 4)
    assert (closed["client"], closed["status"], closed["finish_reason"]) == ("unix", 499, "abort")
    assert len({line["request_id"] for line in requests}) == len(requests)
    assert secret not in said


def test_what_was_asked_is_shown_within_bounds() -> None:
    turns = [ChatTurn("user", "hi")]
    asked: list[Asked] = [TextPrompt("one"), TokenPrompt(pack_int32([1, 2])), [3, 4], Conversation(turns)]
    assert shown(asked) == 'one\n[1,2]\n[3,4]\n[{"role":"user","content":"hi"}]'
    assert len(shown([TextPrompt("x" * 10**6)])) < 20_000
    assert in_log("a\n\x1b[2Jb" + "c" * 1000) == ("a??[2Jb" + "c" * 1000)[:200]
