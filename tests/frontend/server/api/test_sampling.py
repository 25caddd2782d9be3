"""What requests rule out or favour, over a real connection: the simulated device follows it by rules that can be worked out."""

import itertools
from typing import Any

import httpx
import pytest

from tests.frontend.server.api.running import RunningEngine

_ASK: dict[str, Any] = {"model": "demo", "prompt": "Hello world", "max_tokens": 12, "seed": 7, "return_token_ids": True}


def tokens(http: httpx.Client, **fields: Any) -> list[int]:
    response = http.post("/v1/completions", json=_ASK | fields)
    assert response.status_code == 200, response.text
    token_ids: list[int] = response.json()["choices"][0]["token_ids"]
    return token_ids


def test_only_allowed_tokens_come(http: httpx.Client) -> None:
    assert set(tokens(http, allowed_token_ids=[100, 20000, 40000], max_tokens=40)) == {100, 20000, 40000}


def test_a_bias_bans_or_forces(http: httpx.Client) -> None:
    free = tokens(http)
    assert tokens(http, logit_bias={"4999": 0.0}) == free
    banned = tokens(http, logit_bias={str(free[0]): -100})
    assert banned[0] == free[0] + 1  # the next by rank
    assert tokens(http, allowed_token_ids=[100, 101], logit_bias={"101": 100}) == [101] * 12


def test_bad_words_are_never_said(http: httpx.Client, running: RunningEngine) -> None:
    zebra, paris = running.engine.tokenizer.encode(" zebra Paris")
    fields: dict[str, Any] = {"allowed_token_ids": [zebra, paris, 45000], "max_tokens": 60}
    assert (zebra, paris) in itertools.pairwise(tokens(http, **fields))
    said = tokens(http, **fields, bad_words=["zebra Paris"])
    assert zebra in said and paris in said and (zebra, paris) not in itertools.pairwise(said)


def test_log_probabilities_are_those_before_the_rules(http: httpx.Client) -> None:
    free = tokens(http, max_tokens=1)[0]
    response = http.post("/v1/completions", json=_ASK | {"max_tokens": 1, "logprobs": 2, "logit_bias": {str(free): -100}})
    logprobs = response.json()["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"] == [pytest.approx(-1.386294, abs=1e-5)]  # rank 2
    assert len(logprobs["top_logprobs"][0]) == 2


def test_a_request_with_nothing_left_on_its_way_says_so(http: httpx.Client) -> None:
    """Known only once it happens: after `a` there is no token that would not make the bad word."""
    (a,) = http.post("/tokenize", json={"prompt": " a"}).json()["tokens"]
    response = http.post("/v1/completions", json=_ASK | {"allowed_token_ids": [a], "bad_words": ["a a"]})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "unsatisfiable"
    assert "no token was left" in response.json()["error"]["message"]


def test_no_stop_before_the_minimum(http: httpx.Client) -> None:
    """min_tokens goes for stop strings and stop ids alike, beside rules."""
    (a,) = http.post("/tokenize", json={"prompt": " a"}).json()["tokens"]
    fields: dict[str, Any] = {"allowed_token_ids": [a, a + 1], "logit_bias": {str(a): 5}}
    assert len(tokens(http, **fields, stop=[" a"])) == 1
    assert len(tokens(http, **fields, stop=[" a"], min_tokens=5)) == 6
    assert tokens(http, **fields, stop_token_ids=[a], min_tokens=3) == [a + 1] * 3 + [a]


def test_the_best_of_several_by_the_sum_of_their_log_probabilities(http: httpx.Client) -> None:
    fields: dict[str, Any] = _ASK | {"allowed_token_ids": [100, 9000, 20000], "logprobs": 0}
    response = http.post("/v1/completions", json=fields | {"n": 6, "prompt": ["Hello world", "Once"]})
    choices = response.json()["choices"]
    ranked = [sorted(choices[first : first + 6], key=lambda choice: -sum(choice["logprobs"]["token_logprobs"])) for first in (0, 6)]
    answer = http.post("/v1/completions", json=fields | {"n": 2, "best_of": 6, "prompt": ["Hello world", "Once"]}).json()
    expected = [choice["token_ids"] for mine in ranked for choice in mine[:2]]
    assert [choice["token_ids"] for choice in answer["choices"]] == expected
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["completion_tokens"] == 12 * 12  # all that were generated
    quiet = http.post("/v1/completions", json=fields | {"n": 1, "best_of": 6, "logprobs": None}).json()
    assert quiet["choices"][0]["token_ids"] == expected[0] and quiet["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("kind", ["ids", "text", "list"])
def test_long_prompts_are_cut_where_asked(http: httpx.Client, running: RunningEngine, kind: str) -> None:
    ids = [19556, *([905, 284] * 5000)]
    prompt: Any = {"ids": ids, "text": running.engine.tokenizer._fast.decode(ids), "list": [ids]}[kind]
    for asked, length in ((7, 7), (-1, 8192 - 12)):
        response = http.post("/v1/completions", json=_ASK | {"prompt": prompt, "truncate_prompt_tokens": asked})
        assert response.status_code == 200, response.text
        choice = response.json()["choices"][0]
        assert choice["prompt_token_ids"] == ids[-length:] and choice["finish_reason"] == "length"
    response = http.post(
        "/v1/completions", json=_ASK | {"prompt": prompt, "truncate_prompt_tokens": 2, "echo": True, "max_tokens": 0}
    )
    assert response.json()["choices"][0]["text"] == running.engine.tokenizer._fast.decode(ids[-2:])


def test_conversations_are_cut_too(http: httpx.Client) -> None:
    body = {"model": "demo", "messages": [{"role": "user", "content": "word " * 9000}], "max_tokens": 2, "return_token_ids": True}
    assert http.post("/v1/chat/completions", json=body).status_code == 400
    choice = http.post("/v1/chat/completions", json=body | {"truncate_prompt_tokens": -1}).json()["choices"][0]
    assert len(choice["prompt_token_ids"]) == 8190


def test_an_answer_that_is_late_ends_with_an_error_and_is_not_computed_to_its_end(
    http: httpx.Client, running: RunningEngine
) -> None:
    endless: dict[str, Any] = {"model": "demo", "prompt": "Hello", "max_tokens": 8000, "ignore_eos": True, "timeout": 0.2}
    answer = http.post("/v1/completions", json=endless)
    assert (answer.status_code, answer.headers["x-should-retry"]) == (504, "false")
    assert answer.json()["error"]["code"] == "deadline_exceeded"
    events = http.post("/v1/completions", json=endless | {"stream": True}).text.split("\n\n")
    assert len(events) > 3, "what came before is shown"
    assert '"deadline_exceeded"' in events[-3] and events[-2] == "data: [DONE]"
    running.wait_until_idle()
    assert http.post("/v1/completions", json=_ASK | {"timeout": 100}).json()["choices"][0]["token_ids"] == tokens(http)
