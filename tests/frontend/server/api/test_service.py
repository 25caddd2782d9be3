"""The routes about the engine, API keys and request ids."""

from collections.abc import Iterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from frontend.server import router
from frontend.server.api.guard import ApiKeys, Guard


def test_models(http: httpx.Client) -> None:
    listed = http.get("/v1/models").json()
    assert [card["id"] for card in listed["data"]] == ["demo", "alias"]
    assert listed["data"][0]["max_model_len"] == 8192
    assert http.get("/v1/models/alias").json()["root"] == "demo"
    assert http.get("/v1/models/other").status_code == 404


def test_a_path_is_the_same_with_a_slash_and_never_redirected(http: httpx.Client) -> None:
    assert http.get("/v1/models/").json() == http.get("/v1/models").json()
    assert http.get("/v1/models/demo/").json()["id"] == "demo"
    answer = http.post("/v1/completions/", json={"prompt": "a", "max_tokens": 1}, headers={"host": "localhost"})
    assert (answer.status_code, answer.json()["object"]) == (200, "text_completion")


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("OPTIONS", "/v1/completions", 204, "OPTIONS, POST"),
        ("OPTIONS", "/v1/models", 204, "GET, HEAD, OPTIONS"),
        ("OPTIONS", "/v1/responses/resp_1", 204, "DELETE, GET, HEAD, OPTIONS"),
        ("POST", "/v1/responses/resp_1", 405, "DELETE, GET, HEAD, OPTIONS"),
        ("OPTIONS", "/v1/nothing", 404, None),
        ("DELETE", "/v1/models", 405, "GET, HEAD, OPTIONS"),
        ("GET", "/v1/chat/completions", 405, "OPTIONS, POST"),
        ("HEAD", "/v1/chat/completions", 405, "OPTIONS, POST"),
        ("HEAD", "/v1/models", 200, None),
        ("HEAD", "/health", 200, None),
    ],
)
def test_methods(http: httpx.Client, method: str, path: str, status: int, allow: str | None) -> None:
    answer = http.request(method, path)
    assert (answer.status_code, answer.headers.get("allow")) == (status, allow)
    if method == "HEAD":
        assert answer.content == b""
        assert int(answer.headers["content-length"]) > 0
    elif status > 400:
        assert answer.json()["error"]["code"] == ("method_not_allowed" if status == 405 else "not_found")


def test_health_and_version(http: httpx.Client) -> None:
    assert http.get("/health").json() == {"status": "ok", "workers": 1, "workers_wanted": 1}
    assert http.get("/ping").status_code == 200
    assert http.get("/ready").json() == http.get("/health").json()
    assert set(http.get("/version").json()) == {"version"}


def test_an_engine_that_is_full_is_well_and_not_ready(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "_MOST_REQUESTS", 0)
    assert http.get("/health").status_code == 200
    answer = http.get("/ready")
    assert (answer.status_code, answer.json()["status"]) == (503, "too many requests are under way")
    assert http.post("/v1/completions", json={"prompt": "a"}).status_code == 429


def test_every_answer_has_a_request_id(http: httpx.Client) -> None:
    assert http.get("/health", headers={"x-request-id": "abc-123"}).headers["x-request-id"] == "abc-123"
    ours = [http.get("/health", headers=headers).headers["x-request-id"] for headers in ({}, {"x-request-id": "x" * 300})]
    ours.append(http.get("/nowhere").headers["x-request-id"])
    assert len(set(ours)) == 3 and all(len(name) == 24 for name in ours)
    answer = http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}, headers={"x-request-id": "my own"})
    assert answer.json()["id"] == "cmpl-my own"


@pytest.fixture
def guarded() -> Iterator[TestClient]:
    routes = [Route(path, lambda _: PlainTextResponse("in")) for path in ("/v1/models", "/health", "/new")]
    with TestClient(Guard(Starlette(routes=routes), ApiKeys(["first", "second"]))) as client:
        yield client


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", "Bearer first2", "first", "Basic first", "Bearer \u00e4"])
def test_without_a_known_key_nothing_opens(guarded: TestClient, header: str | None) -> None:
    headers = [] if header is None else [(b"authorization", header.encode())]
    for path in ("/v1/models", "/new", "/no/such/path"):
        response = guarded.get(path, headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["code"] == "invalid_api_key"


def test_a_wrong_key_of_the_other_header_opens_nothing(guarded: TestClient) -> None:
    for headers in ({"x-api-key": "wrong"}, {"x-api-key": "Bearer first"}, {"x-api-key": "first", "authorization": "Bearer wrong"}):
        assert guarded.get("/v1/models", headers=headers).status_code == 401
    error = guarded.post("/v1/messages", headers={"x-api-key": "wrong"}).json()
    assert (error["type"], error["error"]["type"]) == ("error", "authentication_error")


def test_what_can_be_done_is_told_without_a_key(guarded: TestClient) -> None:
    assert guarded.options("/v1/models").status_code != 401


def test_each_key_opens_and_health_needs_none(guarded: TestClient) -> None:
    for key in ("first", "second"):
        assert guarded.get("/v1/models", headers={"authorization": f"Bearer {key}"}).text == "in"
        assert guarded.get("/v1/models", headers={"x-api-key": key}).text == "in"
    assert guarded.get("/health").text == "in"
    assert guarded.get("/health/").text == "in"
