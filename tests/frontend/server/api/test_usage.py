"""How many tokens of the prompt came out of the cache, in every form that an answer takes."""

import itertools
from typing import Any

import httpx
import pytest

from tests.frontend.server.api.running import RunningEngine
from tests.frontend.server.api.test_completions import _complete, _events

_BLOCK = 16  # tokens, of the running engine
_fresh = itertools.count(1000)


@pytest.fixture
def prompt(http: httpx.Client) -> list[int]:
    """Three blocks and a bit that the cache holds: three blocks of them count."""
    token_ids = [next(_fresh)] * (3 * _BLOCK + 5)
    assert _cached(_complete(http, prompt=token_ids)["usage"]) == 0
    return token_ids


def _cached(usage: dict[str, Any]) -> int:
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert isinstance(cached, int)
    return cached


def _stop_within(http: httpx.Client, prompt: list[int]) -> str:
    """A stop string that the answer to `prompt` completes some tokens before its end."""
    text: str = _complete(http, prompt=prompt)["choices"][0]["text"]
    return text[len(text) // 2 : len(text) // 2 + 3]


def test_plain(http: httpx.Client, prompt: list[int]) -> None:
    assert _cached(_complete(http, prompt=prompt)["usage"]) == 3 * _BLOCK


def test_plain_that_a_stop_string_ends(http: httpx.Client, prompt: list[int]) -> None:
    answer = _complete(http, prompt=prompt, stop=[_stop_within(http, prompt)])
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert _cached(answer["usage"]) == 3 * _BLOCK


@pytest.mark.parametrize("stops", [False, True])
def test_every_chunk_of_a_stream_says_the_same(http: httpx.Client, prompt: list[int], stops: bool) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    stop = [_stop_within(http, prompt)] if stops else None
    events = _events(http, prompt=prompt, stop=stop, stream_options=options)
    assert events[-2]["choices"][0]["finish_reason"] == ("stop" if stops else "length")
    assert len(events) >= 2  # where the loop has much to do, deltas merge
    assert {_cached(event["usage"]) for event in events} == {3 * _BLOCK}


def test_chat(http: httpx.Client) -> None:
    ask = {"model": "demo", "messages": [{"role": "user", "content": "What is it worth? " * 8}], "max_tokens": 4, "temperature": 0}
    counts = []
    for _ in range(2):
        response = http.post("/v1/chat/completions", json=ask)
        assert response.status_code == 200
        counts.append(_cached(response.json()["usage"]))
    assert counts[1] > counts[0]
    assert counts[1] % _BLOCK == 0


def test_several_prompts_add_up(http: httpx.Client, prompt: list[int]) -> None:
    answer = _complete(http, prompt=[prompt, [next(_fresh)] * 40, prompt[:20]])
    assert _cached(answer["usage"]) == 3 * _BLOCK + 0 + _BLOCK


def test_the_engine_counts_what_it_says(http: httpx.Client, running: RunningEngine, prompt: list[int]) -> None:
    before = running.run(running.engine.router.stats()).counters
    _complete(http, prompt=prompt)
    after = running.run(running.engine.router.stats()).counters
    assert after["prefix_cache_queries"] - before["prefix_cache_queries"] == len(prompt)
    assert after["prefix_cache_hits"] - before["prefix_cache_hits"] == 3 * _BLOCK
