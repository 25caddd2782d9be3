"""What an operator decides about clients: whether limits are clipped, whether they have priorities, whose prefixes they find."""

from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.frontend.server.api.running import RunningEngine, another_front

CONTEXT = 8192
PROMPT = [5] * (CONTEXT - 3)
CHAT = {"messages": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize("stream", [False, True])
def test_a_limit_beyond_the_context_is_clipped_and_a_header_says_so(http: httpx.Client, *, stream: bool) -> None:
    options = {"include_usage": True} if stream else None
    body = {"prompt": PROMPT, "max_tokens": CONTEXT, "ignore_eos": True, "stream": stream, "stream_options": options}
    response = http.post("/v1/completions", json=body)
    assert (response.status_code, response.headers["x-max-tokens-clipped"]) == (200, "3")
    assert '"completion_tokens":3,' in response.text
    assert '"finish_reason":"length"' in response.text


def test_of_several_prompts_the_header_names_the_least_room(http: httpx.Client) -> None:
    body = {"prompt": [PROMPT, PROMPT[1:], [5]], "max_tokens": 4, "ignore_eos": True}
    response = http.post("/v1/completions", json=body)
    assert response.headers["x-max-tokens-clipped"] == "3"
    assert response.json()["usage"]["completion_tokens"] == 3 + 4 + 4


def test_what_fits_has_no_such_header(http: httpx.Client) -> None:
    body = {"prompt": PROMPT, "max_tokens": 3, "ignore_eos": True}
    assert "x-max-tokens-clipped" not in http.post("/v1/completions", json=body).headers


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/completions", {"prompt": "word", "max_tokens": CONTEXT}, "max_tokens"),
        ("/v1/chat/completions", CHAT | {"max_tokens": CONTEXT}, "max_tokens"),
        ("/v1/chat/completions", CHAT | {"max_completion_tokens": CONTEXT}, "max_completion_tokens"),
    ],
)
def test_a_strict_engine_refuses_it_with_the_words_that_clients_look_for(
    running: RunningEngine, path: str, fields: dict[str, Any], param: str
) -> None:
    with another_front(running, strict_max_tokens=True) as http:
        response = http.post(path, json=fields)
        assert response.status_code == 400
        error = response.json()["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", param)
        assert f"This model's maximum context length is {CONTEXT} tokens" in error["message"]


def test_a_priority_is_the_operators_to_allow(running: RunningEngine, http: httpx.Client) -> None:
    body = {"prompt": "a", "max_tokens": 1, "priority": -1}
    error = http.post("/v1/completions", json=body).json()["error"]
    assert (error["param"], error["code"]) == ("priority", "unsupported_parameter")
    assert "--scheduling-policy priority" in error["message"]
    assert http.post("/v1/completions", json=body | {"priority": 0}).status_code == 200
    with another_front(running, scheduling_policy="priority") as allowed:
        assert allowed.post("/v1/completions", json=body).status_code == 200


def test_each_key_finds_its_own_prefixes_only(running: RunningEngine) -> None:
    prompt = [int(character, 16) + 1 for character in uuid4().hex * 4]  # one that the cache has not seen

    def cached(client: httpx.Client, key: str, salt: str | None = None) -> int:
        body = {"prompt": prompt, "max_tokens": 1, "cache_salt": salt}
        answer = client.post("/v1/completions", json=body, headers={"authorization": f"Bearer {key}"}).json()
        tokens: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        return tokens

    with another_front(running, api_keys=("one", "two")) as http:
        assert cached(http, "one") == 0
        assert cached(http, "one") > 0
        assert cached(http, "two") == 0
        assert cached(http, "one", "mine") == 0
        assert cached(http, "one", "mine") > 0
        assert cached(http, "two", "mine") == 0
    with another_front(running, api_keys=("one",)) as http:
        assert cached(http, "one") > 0, "the salt follows from the key alone"
    with another_front(running, api_keys=("one", "two"), shared_prefix_cache=True) as http:
        assert cached(http, "one") == 0, "nor with who needs no key"
        assert cached(http, "two") > 0


def test_with_a_seed_of_the_engine_a_run_can_be_repeated(running: RunningEngine) -> None:
    body = {"prompt": ["a", "a"], "n": 2, "max_tokens": 8, "ignore_eos": True}

    def run(seed: int | None) -> list[str]:
        with another_front(running, seed=seed) as http:
            return [choice["text"] for _ in range(2) for choice in http.post("/v1/completions", json=body).json()["choices"]]

    first = run(5)
    assert run(5) == first
    assert run(6) != first
    assert run(None) != run(None)
    assert len(set(first)) == 8, "each output has a seed of its own"
