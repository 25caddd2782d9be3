"""POST /v1/completions, over a real connection."""

import json
from typing import Any

import httpx
import pytest

from tests.frontend.server.api.running import RunningEngine

_ASK: dict[str, Any] = {"model": "demo", "prompt": "Hello world", "max_tokens": 12, "seed": 7, "temperature": 0}


def _complete(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = http.post("/v1/completions", json=_ASK | fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def _events(http: httpx.Client, path: str = "/v1/completions", **fields: Any) -> list[dict[str, Any]]:
    with http.stream("POST", path, json=_ASK | fields | {"stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def test_an_answer_in_full(http: httpx.Client, running: RunningEngine) -> None:
    answer = _complete(http, return_token_ids=True)
    (choice,) = answer["choices"]
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["model"] == "demo"
    assert answer["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 12,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert (choice["index"], choice["finish_reason"], choice["stop_reason"]) == (0, "length", None)
    assert choice["prompt_token_ids"] == running.engine.tokenizer.encode("Hello world")
    assert choice["text"] == running.engine.tokenizer._fast.decode(choice["token_ids"], skip_special_tokens=True)


def test_a_stream_brings_the_same_text_and_the_usage_last(http: httpx.Client) -> None:
    text = _complete(http)["choices"][0]["text"]
    *events, usage = _events(http, stream_options={"include_usage": True})
    assert "".join(event["choices"][0]["text"] for event in events) == text
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None] * (len(events) - 1)
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 12


def test_a_stream_without_options_tells_no_usage(http: httpx.Client) -> None:
    assert all(event["choices"] and "usage" not in event for event in _events(http))


def test_usage_with_every_chunk(http: httpx.Client) -> None:
    events = _events(http, stream_options={"include_usage": True, "continuous_usage_stats": True})
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert counts[-1] == counts[-2] == 12


def test_every_kind_of_prompt(http: httpx.Client) -> None:
    ids = [19556, 905]
    by_text = _complete(http)["choices"][0]["text"]
    assert _complete(http, prompt=ids)["choices"][0]["text"] == by_text
    two = _complete(http, prompt=["Hello world", "Another"])
    assert [choice["index"] for choice in two["choices"]] == [0, 1]
    assert two["choices"][0]["text"] == by_text
    assert two["usage"]["completion_tokens"] == 24
    assert [choice["text"] for choice in _complete(http, prompt=[ids, ids])["choices"]] == [by_text, by_text]


def test_n_outputs_have_seeds_of_their_own_and_count_the_prompt_once(http: httpx.Client) -> None:
    answer = _complete(http, n=3, best_of=3)
    texts = [choice["text"] for choice in answer["choices"]]
    assert len(set(texts)) == 3
    assert answer["usage"]["prompt_tokens"] == 2
    assert answer["usage"]["completion_tokens"] == 36
    assert texts[1] == _complete(http, seed=8)["choices"][0]["text"]


def test_n_streams_side_by_side(http: httpx.Client) -> None:
    texts = [choice["text"] for choice in _complete(http, n=3, prompt=["a", "b"])["choices"]]
    pieces = [""] * 6
    for event in _events(http, n=3, prompt=["a", "b"]):
        for choice in event["choices"]:
            pieces[choice["index"]] += choice["text"]
    assert pieces == texts


def test_echo(http: httpx.Client) -> None:
    plain = _complete(http)["choices"][0]["text"]
    assert _complete(http, echo=True)["choices"][0]["text"] == "Hello world" + plain
    assert "".join(event["choices"][0]["text"] for event in _events(http, echo=True, prompt=[19556, 905])) == "Hello world" + plain


@pytest.mark.parametrize("prompts", [["Hello", " world"], [[19556], [905]]])
def test_echo_of_several_prompts(http: httpx.Client, prompts: list[Any]) -> None:
    plain = [choice["text"] for choice in _complete(http, prompt=prompts, n=2)["choices"]]
    echoed = [choice["text"] for choice in _complete(http, prompt=prompts, n=2, echo=True)["choices"]]
    assert echoed == [echo + text for echo, text in zip(["Hello", "Hello", " world", " world"], plain, strict=True)]


def test_a_prompt_that_ends_within_a_character(http: httpx.Client, running: RunningEngine) -> None:
    tokenizer = running.engine.tokenizer
    prompt = [19556, *tokenizer.encode("\N{GRINNING FACE}")[:-1]]
    choice = _complete(http, prompt=prompt, return_token_ids=True)["choices"][0]
    whole = tokenizer._fast.decode(prompt + choice["token_ids"])
    assert choice["text"] == whole.removeprefix("Hello")
    assert _complete(http, prompt=prompt, echo=True)["choices"][0]["text"] == whole
    for echo in (False, True):
        text = "".join(event["choices"][0]["text"] for event in _events(http, prompt=prompt, echo=echo))
        assert text == (whole if echo else choice["text"])


def test_special_tokens_are_hidden_in_prompt_and_completion_alike(http: httpx.Client) -> None:
    prompt = [1, 19556, 2]
    assert _complete(http, prompt=prompt, echo=True)["choices"][0]["text"].startswith("Hello")
    shown = _complete(http, prompt=prompt, echo=True, skip_special_tokens=False)["choices"][0]["text"]
    assert shown.startswith("<|im_start|>Hello<|im_end|>")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_ends_the_text_wherever_tokens_meet(http: httpx.Client, *, stream: bool, include: bool) -> None:
    fields: dict[str, Any] = {"max_tokens": 40}
    text = _complete(http, **fields)["choices"][0]["text"]
    middle = len(text) // 2
    stop = text[middle : middle + 5]  # from the middle of one token into the next
    fields |= {"stop": ["nowhere in it", stop], "include_stop_str_in_output": include}
    expected = text[: text.index(stop)] + (stop if include else "")
    if stream:
        *events, last = _events(http, **fields)
        shown = "".join(event["choices"][0]["text"] for event in [*events, last])
        choice = last["choices"][0]
    else:
        answer = _complete(http, **fields)
        (choice,) = answer["choices"]
        shown = choice["text"]
        assert answer["usage"]["completion_tokens"] < 40
    assert shown == expected
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)


def test_a_stop_token_is_counted_but_not_shown(http: httpx.Client, running: RunningEngine) -> None:
    ids = _complete(http, return_token_ids=True)["choices"][0]["token_ids"]
    position = next(index for index, token_id in enumerate(ids) if index >= 4 and token_id not in ids[:index])
    answer = _complete(http, stop_token_ids=[ids[position]], return_token_ids=True)
    (choice,) = answer["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", ids[position])
    assert choice["token_ids"] == ids[: position + 1]
    assert choice["text"] == running.engine.tokenizer._fast.decode(ids[:position])
    assert answer["usage"]["completion_tokens"] == position + 1


def test_without_max_tokens_the_context_is_the_end(http: httpx.Client) -> None:
    prompt = [5] * 8180
    answer = _complete(http, prompt=prompt, max_tokens=None, ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 12


def test_neutral_values_of_unsupported_fields_are_fine(http: httpx.Client) -> None:
    neutral: dict[str, Any] = {
        "logit_bias": {},
        "suffix": "",
        "bad_words": [],
        "response_format": {"type": "text"},
        "repetition_penalty": 1.0,
        "use_beam_search": False,
        "logprobs": None,
        "stop": None,
        "best_of": 1,
        "user": "someone",
        "from_the_future": {"x": [1]},
    }
    assert _complete(http, **neutral)["choices"][0]["text"] == _complete(http)["choices"][0]["text"]


def test_a_client_that_leaves_ends_its_request(http: httpx.Client, running: RunningEngine) -> None:
    with http.stream("POST", "/v1/completions", json=_ASK | {"max_tokens": 8000, "ignore_eos": True, "stream": True}) as response:
        next(response.iter_lines())
    running.wait_until_idle()


def test_a_client_that_leaves_ends_its_request_also_without_streaming(http: httpx.Client, running: RunningEngine) -> None:
    with pytest.raises(httpx.ReadTimeout):
        http.post(
            "/v1/completions", json=_ASK | {"max_tokens": 8000, "ignore_eos": True, "n": 2}, timeout=httpx.Timeout(60, read=0.3)
        )
    running.wait_until_idle()
    assert http.get("/health").status_code == 200
