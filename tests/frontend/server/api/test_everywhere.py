"""What holds for every route that takes a body, whatever its format."""

import gzip
import json
from typing import Any

import httpx
import pytest

from tests.frontend.server.api.running import RunningEngine, another_front

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}]}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "a", "max_tokens": 1},
    "/v1/chat/completions": CHAT | {"max_tokens": 1},
    "/v1/embeddings": {"input": "a"},
    "/v1/responses": {"model": "demo", "input": "a", "max_output_tokens": 16},
    "/v1/messages": CHAT | {"model": "demo", "max_tokens": 1},
    "/v1/messages/count_tokens": CHAT | {"model": "demo"},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [1]},
}
GENERATING = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages")
LONG = "word " * 20_000


def test_these_are_all(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    assert BODIES.keys() == {path for path, operations in paths.items() if "requestBody" in operations.get("post", {})}


@pytest.mark.parametrize("path", BODIES)
def test_bodies_are_plain_json(http: httpx.Client, path: str) -> None:
    data = json.dumps(BODIES[path]).encode()
    assert http.post(path, content=data, headers={"content-type": "application/json"}).status_code == 200
    for coding in ("gzip", "deflate", "br", "zstd", "gzip, identity"):
        answer = http.post(path, content=gzip.compress(data), headers={"content-encoding": coding})
        assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "identity")
    assert http.post(path, content=data, headers={"content-type": "text/plain"}).status_code == 415
    page = {"content-type": "application/x-www-form-urlencoded", "origin": "http://page.example"}
    assert http.post(path, content=data, headers=page).status_code == 415


@pytest.mark.parametrize("path", BODIES)
def test_unknown_fields_are_ignored(http: httpx.Client, path: str) -> None:
    assert http.post(path, json=BODIES[path] | {"x_unknown": {"a": [1]}}).status_code == 200


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize("stream", [False, True])
def test_what_does_not_fit_is_said_in_the_words_that_clients_look_for(http: httpx.Client, path: str, *, stream: bool) -> None:
    long = {"prompt": LONG} if path == "/v1/completions" else {"messages": [{"role": "user", "content": LONG}]}
    fields = {"input": LONG} if path == "/v1/responses" else long
    answer = http.post(path, json=BODIES[path] | fields | {"stream": stream})
    assert answer.status_code == 400
    assert "This model's maximum context length is 8192 tokens" in answer.json()["error"]["message"]
    assert path == "/v1/messages" or answer.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize("stream", [False, True])
def test_too_large_a_limit_is_clipped(http: httpx.Client, path: str, *, stream: bool) -> None:
    name = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    long = "word " * 8100
    fields = {"prompt": long, "messages": [{"role": "user", "content": long}], "input": long}
    known = {key: value for key, value in fields.items() if key in BODIES[path]}
    answer = http.post(path, json=BODIES[path] | known | {name: 8192, "stream": stream})
    assert answer.status_code == 200, answer.text
    assert 1 <= int(answer.headers["x-max-tokens-clipped"]) < 92


@pytest.mark.parametrize("path", BODIES)
def test_a_key_is_wanted_and_the_answer_named(running: RunningEngine, path: str) -> None:
    with another_front(running, api_keys=("key",), allowed_origins=("http://page.example",)) as http:
        headers = {"x-request-id": "mine", "origin": "http://page.example"}
        for key, status in (("wrong", 401), ("key", 200)):
            answer = http.post(path, json=BODIES[path], headers=headers | {"authorization": f"Bearer {key}"})
            assert (answer.status_code, answer.headers["x-request-id"]) == (status, "mine")
            assert answer.headers["access-control-allow-origin"] == "http://page.example"
            assert "key" not in answer.headers.values()
