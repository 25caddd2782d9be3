"""CORS as browsers ask for it."""

import httpx
import pytest

from tests.frontend.server.api.running import RunningEngine, another_front

PAGE = "https://chat.example.com"
ASK = {"model": "demo", "prompt": "a", "max_tokens": 1}
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-os",
}


def cors(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("access-control-") or name == "vary"}


def test_without_allowed_origins_no_page_reads_anything(http: httpx.Client) -> None:
    assert cors(http.post("/v1/completions", json=ASK, headers={"origin": PAGE})) == {}
    preflight = http.options("/v1/completions", headers=PREFLIGHT)
    assert (preflight.status_code, cors(preflight)) == (204, {})


def test_a_page_that_is_allowed(running: RunningEngine) -> None:
    with another_front(running, allowed_origins=(PAGE, "http://localhost:3000")) as http:
        preflight = http.options("/v1/completions", headers=PREFLIGHT)
        assert preflight.status_code == 204
        assert cors(preflight) == {
            "access-control-allow-origin": PAGE,
            "access-control-allow-methods": "GET, HEAD, OPTIONS, POST",
            "access-control-allow-headers": "authorization,content-type,x-stainless-os",
            "access-control-max-age": "600",
            "access-control-expose-headers": "x-request-id, x-max-tokens-clipped, retry-after",
            "vary": "Access-Control-Request-Headers, Origin",
        }
        for body in (ASK, ASK | {"stream": True}, ASK | {"max_tokens": 0}, ASK | {"model": "no such"}):
            answer = http.post("/v1/completions", json=body, headers={"origin": PAGE})
            assert answer.headers["access-control-allow-origin"] == PAGE
            assert answer.headers["vary"] == "Origin"
            assert "access-control-allow-credentials" not in answer.headers
        answer = http.post("/v1/completions", json=ASK, headers={"origin": "http://localhost:3000"})
        assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "https://chat.example.com.evil.example", "null", "HTTPS://CHAT.EXAMPLE.COM", PAGE + "/"]
)
def test_a_page_that_is_not(running: RunningEngine, origin: str) -> None:
    with another_front(running, allowed_origins=(PAGE,), allow_credentials=True) as http:
        preflight = http.options("/v1/completions", headers=PREFLIGHT | {"origin": origin})
        assert (preflight.status_code, preflight.json()["error"]["code"]) == (403, "origin_not_allowed")
        assert cors(preflight) == {"vary": "Origin"}
        assert cors(http.post("/v1/completions", json=ASK, headers={"origin": origin})) == {"vary": "Origin"}
        assert cors(http.get("/v1/models")) == {"vary": "Origin"}, "a cache must not give this answer to a page"


def test_all_pages_are_told_so_and_never_by_their_name(running: RunningEngine) -> None:
    with another_front(running, allowed_origins=("*",), api_keys=("key",)) as http:
        preflight = http.options("/v1/models", headers=PREFLIGHT)
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (204, "*")
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        refused = http.get("/v1/models", headers={"origin": PAGE})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "*")
        answer = http.get("/v1/models", headers={"origin": PAGE, "authorization": "Bearer key"})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")
        assert "access-control-allow-credentials" not in answer.headers


def test_credentials_where_the_operator_says_so(running: RunningEngine) -> None:
    with another_front(running, allowed_origins=(PAGE,), allow_credentials=True) as http:
        for answer in (http.options("/v1/completions", headers=PREFLIGHT), http.get("/v1/models", headers={"origin": PAGE})):
            assert answer.headers["access-control-allow-credentials"] == "true"
            assert answer.headers["access-control-allow-origin"] == PAGE


def test_what_is_no_list_of_headers_is_not_said_back(running: RunningEngine) -> None:
    with another_front(running, allowed_origins=("*",)) as http:
        asked = PREFLIGHT | {"access-control-request-headers": "x: <script>"}
        assert "access-control-allow-headers" not in http.options("/v1/completions", headers=asked).headers


def test_options_without_a_question_is_answered_as_ever(running: RunningEngine) -> None:
    with another_front(running, allowed_origins=(PAGE,)) as http:
        answer = http.options("/v1/completions", headers={"origin": PAGE})
        assert (answer.status_code, answer.headers["allow"]) == (204, "OPTIONS, POST")
