"""Whatever comes from outside gets an answer below 500, in OpenAI's format, and the engine goes on."""

import gzip
import json
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.server.http.limits import MAX_BODY
from tests.frontend.server.api.running import RunningEngine, another_front

_ASK: dict[str, Any] = {"model": "demo", "prompt": "Hello", "max_tokens": 2}
_HI = [{"role": "user", "content": "Hi"}]
_PATHS = ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [1, [2]]}, "prompt"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": [49152]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [2**63]}, "prompt"),
        ({"prompt": [5] * 8192}, "prompt"),
        ({"prompt": "word " * 9000}, "prompt"),
        ({"prompt": "x" * 3_000_000}, "prompt"),
        ({"prompt": ["a"] * 2000}, "prompt"),
        ({"prompt": ["a"] * 100, "n": 100}, "n"),
        ({"prompt": None}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10**12}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"min_tokens": 5}, "min_tokens"),
        ({"n": 0}, "n"),
        ({"n": 10**9}, "n"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"best_of": 129}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"length_penalty": 0.5}, "length_penalty"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1.0}, "timeout"),
        ({"timeout": 1e9}, "timeout"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 8192}, "truncate_prompt_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ["x"] * 500_000}, "stop"),
        ({"stop": ["x" * 2000]}, "stop"),
        ({"stop": ["x" * 1000] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop_token_ids": [49152]}, "stop_token_ids"),
        ({"stop_token_ids": list(range(3, 19))}, "stop_token_ids"),
        ({"logprobs": 21}, "logprobs"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"priority": 2**40}, "priority"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"49152": 1}}, "logit_bias"),
        ({"logit_bias": {str(token_id): 1 for token_id in range(513)}}, "logit_bias"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids"),
        ({"allowed_token_ids": [5] * 49153}, "allowed_token_ids"),
        ({"allowed_token_ids": [5], "logit_bias": {"5": -100}}, "allowed_token_ids"),
        ({"bad_words": ["a"] * 65}, "bad_words"),
        ({"bad_words": [" "]}, "bad_words"),
        ({"bad_words": ["word " * 17]}, "bad_words"),
        ({"bad_words": "word"}, "bad_words"),
        ({"suffix": "end"}, "suffix"),
        ({"suffix": "end", "echo": True}, "suffix"),
        ({"suffix": "end", "prompt": [5]}, "suffix"),
        ({"suffix": 5}, "suffix"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"stream_options": 5}, "stream_options"),
    ],
)
def test_a_bad_value_is_named(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    response = http.post("/v1/completions", json=_ASK | fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert param.partition("[")[0] in error["message"]


@pytest.mark.parametrize("path", _PATHS)
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b'{"prompt": nan}',
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a"} trailing',
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"ignored": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"ignored": ' + b'{"a":' * 100_000,
        b'{"logit_bias": ' + b"[" * 100_000 + b"]" * 100_000 + b', "prompt": "a"}',
        b'{"max_tokens": ' + b"9" * 10_000 + b"}",
        b'{"tokens": [-1], "prompt": [-1], "messages": 1}',
    ],
)
def test_a_bad_body_is_a_bad_request(http: httpx.Client, path: str, data: bytes) -> None:
    response = http.post(path, content=data)
    assert response.status_code == 400, response.text
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", _PATHS)
@pytest.mark.parametrize(
    ("headers", "data", "status", "code", "says"),
    [
        ({"content-encoding": "gzip"}, gzip.compress(b"{}"), 415, "unsupported_encoding", "Content-Encoding 'gzip'"),
        ({"content-encoding": "br, zstd"}, b"{}", 415, "unsupported_encoding", "Content-Encoding"),
        ({"content-type": "text/plain"}, b"{}", 415, "unsupported_media_type", "application/json"),
        (
            {"content-type": "application/x-www-form-urlencoded", "origin": "http://a.example"},
            b"{}",
            415,
            "unsupported_media_type",
            "application/json",
        ),
        ({"content-type": "multipart/form-data; boundary=a"}, b"{}", 415, "unsupported_media_type", "application/json"),
        ({"content-type": "x" * 1000}, b"{}", 415, "unsupported_media_type", "application/json"),
        ({"content-type": "application/json"}, b"", 400, "empty_body", "the body is empty"),
        ({}, b"", 400, "empty_body", "send the request as JSON"),
    ],
)
def test_a_body_is_json_and_says_so_or_nothing(
    http: httpx.Client, path: str, headers: dict[str, str], data: bytes, status: int, code: str, says: str
) -> None:
    response = http.post(path, content=data, headers=headers)
    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert says in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "kind",
    ["", "application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json", "application/x-www-form-urlencoded"],
)
def test_json_by_any_of_its_names(http: httpx.Client, kind: str) -> None:
    headers = {"content-type": kind, "content-encoding": "identity"} if kind else {}
    assert http.post("/v1/completions", content=json.dumps(_ASK), headers=headers).status_code == 200


def _exchange(address: httpx.URL, request: str) -> bytes:
    with socket.create_connection((address.host, address.port or 80), timeout=20) as connection:
        connection.sendall(request.encode("latin-1"))
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET /%ff%fe/%00", 404),
        ("GET /v1/models/%ff%0d%0aSet-Cookie:a", 404),
        ("GET //v1/models", 404),
        ("GET http://elsewhere/v1/models", 200),
        ("GET http://elsewhere", 200),
        ("DELETE http://[::1]:80/v1/models", 405),
        ("GET *", 404),
        ("OPTIONS *", 204),
        ("OPTIONS /v1/models", 204),
        ("POST /v1/models", 405),
        ("GET /v1/models?%ff=%zz", 200),
    ],
)
@pytest.mark.parametrize("host", ["[", "a b", "\xff", "elsewhere:99999", ""])
def test_odd_targets_and_hosts(running: RunningEngine, caplog: pytest.LogCaptureFixture, line: str, status: int, host: str) -> None:
    with another_front(running, allowed_hosts=("*",)) as anyone:
        data = _exchange(anyone.base_url, f"{line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
    on_loopback = _exchange(httpx.URL(running.url), f"{line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
    assert on_loopback.startswith(b"HTTP/1.1 421 ")
    assert data.startswith(b"HTTP/1.1 %d " % status)
    assert b"set-cookie" not in data.partition(b"\r\n\r\n")[0].lower()
    assert not [record for record in caplog.records if record.exc_info]


def test_a_body_too_large_is_refused_with_and_without_a_length(http: httpx.Client) -> None:
    piece = b"x" * (1 << 20)
    assert http.post("/v1/completions", content=piece * (MAX_BODY // len(piece) + 1)).status_code == 413
    response = http.post("/v1/completions", content=(piece for _ in range(MAX_BODY // len(piece) + 1)))
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/completions", {"prompt": [5] * 8192}, "prompt"),
        ("/v1/completions", {"prompt": [[1], [5] * 9000]}, "prompt"),
        ("/v1/completions", {"prompt": "word " * 9000}, "prompt"),
        ("/v1/completions", {"prompt": "x" * 3_000_000}, "prompt"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "word " * 9000}]}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 3_000_000}]}, "messages"),
        ("/tokenize", {"prompt": "x" * 3_000_000}, "prompt"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_does_not_fit_the_context_has_the_code_and_the_words_that_clients_look_for(
    http: httpx.Client, path: str, fields: dict[str, Any], param: str, *, stream: bool
) -> None:
    response = http.post(path, json=fields | {"stream": stream})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"], error["type"]) == ("context_length_exceeded", param, "invalid_request_error")
    assert "This model's maximum context length is 8192 tokens" in error["message"]


def test_another_model_another_path_another_method(http: httpx.Client) -> None:
    response = http.post("/v1/completions", json=_ASK | {"model": "gpt-9"})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
    response = http.get("/v1/nothing")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")
    response = http.get("/v1/completions")
    assert (response.status_code, response.json()["error"]["type"]) == (405, "invalid_request_error")


def test_a_model_by_its_other_name_or_by_none(http: httpx.Client) -> None:
    assert http.post("/v1/completions", json=_ASK | {"model": "alias"}).json()["model"] == "alias"
    assert http.post("/v1/completions", json=_ASK | {"model": None}).json()["model"] == "demo"


def test_when_one_prompt_is_bad_none_is_started(http: httpx.Client, running: RunningEngine) -> None:
    before = running.run(running.engine.router.stats()).counters
    assert http.post("/v1/completions", json=_ASK | {"prompt": [[1], [2], [99999]]}).status_code == 400
    after = running.run(running.engine.router.stats()).counters
    assert after.get("requests", 0) == before.get("requests", 0)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("demo"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = st.sampled_from(
    [
        "model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "n", "seed",
        "stop", "stop_token_ids", "stream", "stream_options", "logprobs", "top_logprobs", "echo", "best_of", "logit_bias", "tools",
        "response_format", "tokens", "priority", "cache_salt", "return_token_ids", "min_tokens", "chat_template_kwargs",
    ]
)  # fmt: skip


@settings(max_examples=250)
@given(st.sampled_from(_PATHS), st.dictionaries(_FIELDS, _VALUES, max_size=6), st.booleans())
def test_any_json_gets_an_answer_below_500(http: httpx.Client, path: str, fields: dict[str, Any], valid: bool) -> None:
    if valid:  # let the fuzz reach behind the schema
        fields = {"prompt": "Hello", "messages": [{"role": "user", "content": "Hi"}], "tokens": [1]} | fields
    for name in ("max_tokens", "max_completion_tokens"):
        if fields.get(name) is None:
            fields[name] = 2  # not the whole context
    response = http.post(path, content=json.dumps(fields).encode())
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@settings(max_examples=100)
@given(st.sampled_from(_PATHS), st.binary(max_size=60))
def test_any_bytes_get_an_answer_below_500(http: httpx.Client, path: str, data: bytes) -> None:
    assert http.post(path, content=data).status_code == 400


def test_a_request_cut_off_in_its_body_leaves_the_server_alive(http: httpx.Client, running: RunningEngine) -> None:
    address = urlsplit(running.url)
    with socket.create_connection((address.hostname, address.port)) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    assert http.get("/health").status_code == 200
