"""Log-probabilities of prompts and echoes, over a real connection; the simulated device has a rule for them."""

import json
import math
from typing import Any

import httpx
import pytest

from tests.frontend.server.api.running import RunningEngine
from tpu_worker.simulator import simulated_token

VOCAB = 49152
_PROMPT = "The quick brown fox jumps over the lazy dog and is gone."
_ASK: dict[str, Any] = {"model": "demo", "prompt": _PROMPT, "max_tokens": 3, "seed": 7}


def expected(token_ids: list[int], candidates: int) -> list[tuple[float, list[tuple[int, float]]]]:
    """By the simulated device's rule: of each token but the first, and of the most likely ones."""
    found = []
    for position in range(1, len(token_ids)):
        drawn = simulated_token(token_ids[:position], 0, VOCAB)
        rank = (token_ids[position] - drawn) % VOCAB + 1
        top = [((drawn + one) % VOCAB, -(one + 1) * math.log(2)) for one in range(candidates)]
        found.append((-rank * math.log(2), top))
    return found


def complete(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = http.post("/v1/completions", json=_ASK | fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def check_echo(running: RunningEngine, choice: dict[str, Any], ids: list[int], text: str, candidates: int, generated: int) -> None:
    logprobs, tokenizer = choice["logprobs"], running.engine.tokenizer
    assert choice["text"].startswith(text)
    assert {len(values) for values in logprobs.values()} == {len(ids) + generated}
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    for position, (logprob, top) in enumerate(expected(ids, candidates), 1):
        assert logprobs["token_logprobs"][position] == pytest.approx(logprob, rel=1e-5)
        by_text = {tokenizer.text_of(token_id): value for token_id, value in top} | {tokenizer.text_of(ids[position]): logprob}
        assert logprobs["top_logprobs"][position] == pytest.approx(by_text, rel=1e-5)
    assert logprobs["tokens"][: len(ids)] == [tokenizer.text_of(token_id) for token_id in ids]
    whole = "".join(logprobs["tokens"])
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert whole[offset:].startswith(token)


def test_an_echo_with_log_probabilities(http: httpx.Client, running: RunningEngine) -> None:
    ids = running.engine.tokenizer.encode(_PROMPT)
    (choice,) = complete(http, echo=True, logprobs=2, allowed_token_ids=[100, 200])["choices"]
    check_echo(running, choice, ids, _PROMPT, 2, 3)


def test_as_evaluations_ask(http: httpx.Client, running: RunningEngine) -> None:
    """Lists of token ids, one token to be generated, the sum of a part of what comes."""
    prompts = [running.engine.tokenizer.encode(text) for text in (_PROMPT, "Two plus two is four", "Hi")]
    answer = complete(http, prompt=prompts, echo=True, logprobs=1, max_tokens=1, temperature=0)
    for choice, ids in zip(answer["choices"], prompts, strict=True):
        check_echo(running, choice, ids, running.engine.tokenizer._fast.decode(ids), 1, 1)
    assert answer["usage"]["prompt_tokens"] == sum(map(len, prompts))


def test_nothing_generated_scores_alone(http: httpx.Client, running: RunningEngine) -> None:
    ids = running.engine.tokenizer.encode(_PROMPT)
    answer = complete(http, echo=True, logprobs=1, max_tokens=0)
    (choice,) = answer["choices"]
    check_echo(running, choice, ids, _PROMPT, 1, 0)
    assert (choice["text"], choice["finish_reason"]) == (_PROMPT, "length")
    assert answer["usage"]["completion_tokens"] == 0
    assert complete(http, echo=True, max_tokens=0)["choices"][0]["text"] == _PROMPT
    assert complete(http, echo=True, max_tokens=0, n=2)["choices"][1]["text"] == _PROMPT


def test_a_stream_echoes_with_its_first_event(http: httpx.Client, running: RunningEngine) -> None:
    ids = running.engine.tokenizer.encode(_PROMPT)
    fields = {"echo": True, "logprobs": 1, "n": 2, "allowed_token_ids": [100, 200]}
    whole = complete(http, **fields)["choices"]
    with http.stream("POST", "/v1/completions", json=_ASK | fields | {"stream": True}) as response:
        events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
    for index in range(2):
        choices = [choice for event in events for choice in event["choices"] if choice["index"] == index]
        names = choices[0]["logprobs"]
        logprobs = {name: [value for choice in choices for value in choice["logprobs"][name]] for name in names}
        text = "".join(choice["text"] for choice in choices)
        assert (text, logprobs) == (whole[index]["text"], whole[index]["logprobs"])
        check_echo(running, {"text": text, "logprobs": logprobs}, ids, _PROMPT, 1, 3)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_prompt_logprobs_have_vllms_shape(http: httpx.Client, running: RunningEngine, path: str) -> None:
    prompt: dict[str, Any] = {"prompt": _PROMPT} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "Hi"}]}
    response = http.post(path, json={"model": "demo", "max_tokens": 2, "prompt_logprobs": 2, "return_token_ids": True, **prompt})
    assert response.status_code == 200, response.text
    answer = response.json()
    place, ids = (answer if path != "/v1/completions" else answer["choices"][0]), answer["choices"][0]["prompt_token_ids"]
    shown = place["prompt_logprobs"]
    assert shown[0] is None and len(shown) == len(ids)
    for token_id, entries, (logprob, top) in zip(ids[1:], shown[1:], expected(ids, 2), strict=True):
        assert next(iter(entries)) == str(token_id)
        values = {str(other): value for other, value in top} | {str(token_id): logprob}
        assert {key: entry["logprob"] for key, entry in entries.items()} == pytest.approx(values, rel=1e-5)
        assert entries[str(token_id)]["decoded_token"] == running.engine.tokenizer.bytes[token_id].decode(errors="replace")
        assert all(entries[str(other)]["rank"] == rank for rank, (other, _) in enumerate(top, 1))


def test_a_cached_prompt_is_scored_as_well_and_n_outputs_cost_one_prefill(http: httpx.Client, running: RunningEngine) -> None:
    prompt = [1000 + position % 777 for position in range(2000)]
    complete(http, prompt=prompt)
    running.wait_until_idle()
    before = running.run(running.engine.router.stats()).counters["prefill_tokens"]
    answer = complete(http, prompt=prompt, prompt_logprobs=0, n=8)
    assert running.run(running.engine.router.stats()).counters["prefill_tokens"] - before <= 2000 + 7 * 16
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    first = answer["choices"][0]["prompt_logprobs"]
    assert len(first) == 2000 and all(choice["prompt_logprobs"] == first for choice in answer["choices"])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"echo": True, "logprobs": 20, "prompt": [5] * 600, "stream": True}, "prompt_logprobs"),
        ({"prompt_logprobs": 20, "prompt": [[5] * 8000] * 7}, "prompt_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 0, "logprobs": 1}, "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
    ],
)
def test_what_cannot_be_is_refused(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    response = http.post("/v1/completions", json=_ASK | fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
