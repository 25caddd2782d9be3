"""POST /v1/embeddings over a real connection; the simulated device has a rule for them."""

import base64
import json
import socket
import struct
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import pytest
from msgspec.structs import replace

from frontend.server.text.tokenizer import Tokenizer
from protocol.codec import Float32Array
from protocol.config import EmbeddingSettings
from protocol.params import Pooling
from tests.frontend.server.api.running import RunningEngine, another_front
from tpu_worker.simulator import EMBEDDING_SIZE, simulated_embedding


def unit(vector: Float32Array) -> Float32Array:
    wide = vector.astype(np.float64)
    found: Float32Array = (wide / np.linalg.norm(wide)).astype(np.float32)
    return found


def embed(http: httpx.Client, given: object, **fields: object) -> dict[str, Any]:
    response = http.post("/v1/embeddings", json={"model": "demo", "input": given, **fields})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def vectors(answer: dict[str, Any]) -> Float32Array:
    assert [item["index"] for item in answer["data"]] == list(range(len(answer["data"])))
    return np.array([item["embedding"] for item in answer["data"]], np.float32)


def check(answer: dict[str, Any], prompts: Sequence[Sequence[int]], pooling: Pooling = "last") -> None:
    np.testing.assert_array_equal(vectors(answer), np.stack([unit(simulated_embedding(prompt, pooling)) for prompt in prompts]))


def test_texts_and_tokens_one_and_several(http: httpx.Client, running: RunningEngine) -> None:
    tokenizer = running.engine.tokenizer
    texts = ["A cat sleeps.", "Two plus two", "é"]
    ids = [tokenizer.encode(text) for text in texts]
    check(embed(http, texts), ids)
    check(embed(http, texts[0]), ids[:1])
    check(embed(http, ids), ids)
    check(embed(http, ids[1]), ids[1:2])
    answer = embed(http, texts)
    tokens = sum(map(len, ids))
    assert (answer["object"], answer["model"], answer["data"][0]["object"]) == ("list", "demo", "embedding")
    assert answer["usage"] | {"prompt_tokens_details": 0} == {
        "prompt_tokens": tokens,
        "total_tokens": tokens,
        "prompt_tokens_details": 0,
    }


def test_base64_holds_the_same_numbers(http: httpx.Client) -> None:
    plain, packed = embed(http, ["one", "two"]), embed(http, ["one", "two"], encoding_format="base64")
    decoded = [struct.unpack(f"<{EMBEDDING_SIZE}f", base64.b64decode(item["embedding"])) for item in packed["data"]]
    np.testing.assert_array_equal(vectors(plain), np.array(decoded, np.float32))


def test_a_mean_over_prompts_that_others_left_in_the_cache(http: httpx.Client, running: RunningEngine) -> None:
    prompt = list(range(100, 180))
    assert http.post("/v1/completions", json={"prompt": prompt, "max_tokens": 1}).status_code == 200
    assert embed(http, prompt)["usage"]["prompt_tokens_details"] == {"cached_tokens": 64}
    with another_front(running, embedding=EmbeddingSettings("mean")) as front:
        answer = embed(front, [prompt, prompt[:70]])
        check(answer, [prompt, prompt[:70]], "mean")
        assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


def test_many_at_once_in_chunks_and_beside_others(http: httpx.Client) -> None:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 49152, int(length)).tolist() for length in rng.integers(1, 900, 100)]
    check(embed(http, prompts), prompts)


def test_a_salt_keeps_prefixes_apart(http: httpx.Client) -> None:
    prompt = list(range(300, 380))
    embed(http, prompt, cache_salt="mine")
    assert embed(http, prompt, cache_salt="yours")["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert embed(http, prompt, cache_salt="mine")["usage"]["prompt_tokens_details"] == {"cached_tokens": 64}


def test_a_prompt_may_fill_the_context_and_no_more(http: httpx.Client, running: RunningEngine) -> None:
    limit = running.engine.capacity.max_model_len
    prompt = [7] * limit
    check(embed(http, prompt), [prompt])
    response = http.post("/v1/embeddings", json={"input": [[1], [*prompt, 7]]})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, "input", "context_length_exceeded")
    assert f"maximum context length is {limit} tokens; input[1] has {limit + 1}" in error["message"]
    check(embed(http, [[1], [*prompt, 9]], truncate_prompt_tokens=-1), [[1], prompt])
    check(embed(http, [[1, 2, 3, 4], [5]], truncate_prompt_tokens=3), [[1, 2, 3], [5]])


def test_what_is_left_of_a_text_is_its_beginning(http: httpx.Client, running: RunningEngine) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 20
    ids = running.engine.tokenizer.encode(text)
    check(embed(http, text, truncate_prompt_tokens=9), [ids[:9]])


def test_what_the_tokenizer_puts_around_a_text_stays(running: RunningEngine) -> None:
    tokenizer = Tokenizer.__new__(Tokenizer)
    tokenizer.__dict__ |= running.engine.tokenizer.__dict__ | {"added_at_ends": ([1], [2])}
    ids = tokenizer.encode("The quick brown fox jumps", add_special_tokens=False)

    def beginning(keep: int | None, *, special: bool = True) -> list[int]:
        return tokenizer.encode_beginning("The quick brown fox jumps", keep, add_special_tokens=special, limit=99, field="input[0]")

    assert beginning(None) == [1, *ids, 2] and beginning(99) == [1, *ids, 2]
    assert beginning(4) == [1, *ids[:2], 2] and beginning(2) == [1, 2] and beginning(1) == [1]
    assert beginning(3, special=False) == ids[:3]


def test_shorter_ones_where_the_model_was_trained_for_that(http: httpx.Client, running: RunningEngine) -> None:
    body = {"input": [5, 6, 7], "dimensions": 16}
    error = http.post("/v1/embeddings", json=body).json()["error"]
    assert (error["param"], error["code"]) == ("dimensions", "unsupported_parameter")
    check(embed(http, [5, 6, 7], dimensions=EMBEDDING_SIZE), [[5, 6, 7]])
    with another_front(running, embedding=EmbeddingSettings(shortens=True, sizes=(16, 32))) as front:
        np.testing.assert_array_equal(
            vectors(embed(front, given=[5, 6, 7], dimensions=16))[0], unit(simulated_embedding([5, 6, 7], "last")[:16])
        )
        assert "must be one of 16, 32" in front.post("/v1/embeddings", json=body | {"dimensions": 17}).json()["error"]["message"]
    with another_front(running, embedding=EmbeddingSettings(shortens=True)) as front:
        assert vectors(embed(front, [5, 6, 7], dimensions=17)).shape == (1, 17)
        assert "between 1 and 64" in front.post("/v1/embeddings", json=body | {"dimensions": 65}).json()["error"]["message"]


def test_not_normalised_where_the_model_has_it_so(http: httpx.Client, running: RunningEngine) -> None:
    with another_front(running, embedding=EmbeddingSettings(normalize=False)) as front:
        np.testing.assert_array_equal(vectors(embed(front, [5, 6, 7]))[0], simulated_embedding([5, 6, 7], "last"))


@pytest.mark.parametrize(
    ("body", "param", "text"),
    [
        ({"input": ""}, "input", "input[0] is empty"),
        ({"input": []}, "input", "the input is empty"),
        ({"input": ["a", ""]}, "input", "input[1] is empty"),
        ({"input": [[]]}, "input", "input[0] is empty"),
        ({"input": ["a", 3]}, "input", "must be a string, a list of strings"),
        ({"input": [3, 49152]}, "input", "input[0] holds token ids outside the vocabulary of 49152"),
        ({"input": [[3], [-1]]}, "input", "input[1] holds token ids outside"),
        ({"input": [2**70]}, "input", "outside the vocabulary"),
        ({"input": ["a"] * 2049}, "input", "1 to 2048 inputs in one request, not 2049"),
        ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "-1, or between 1 and"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "int8"),
        ({"input": "a", "dimensions": 0}, "dimensions", "leave it out"),
        ({"input": "a", "priority": 3}, "priority", "--scheduling-policy priority"),
        ({}, None, "input"),
    ],
)
def test_bad_requests(http: httpx.Client, body: dict[str, object], param: str | None, text: str) -> None:
    response = http.post("/v1/embeddings", content=json.dumps(body), headers={"content-type": "application/json"})
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] in (param, "input"), error
    assert text in error["message"]


def test_another_model_is_not_found(http: httpx.Client) -> None:
    assert http.post("/v1/embeddings", json={"input": "a", "model": "text-embedding-3-small"}).status_code == 404


def test_a_model_without_embeddings_says_so(http: httpx.Client, running: RunningEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    router = running.engine.router
    monkeypatch.setattr(router, "_capacity", replace(router.capacity, embedding_size=0))
    error = http.post("/v1/embeddings", json={"input": "a"}).json()["error"]
    assert error["code"] == "unsupported_parameter" and "gives no embeddings" in error["message"]


def test_a_client_that_leaves_takes_its_requests_along(http: httpx.Client, running: RunningEngine) -> None:
    before = running.run(running.engine.router.stats()).counters.get("finished_abort", 0)
    body = json.dumps({"input": [[index] * 1500 for index in range(1, 800)]}).encode()
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = (
            f"POST /v1/embeddings HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        while not running.engine.router.num_requests:
            pass
    running.wait_until_idle()
    assert running.run(running.engine.router.stats()).counters["finished_abort"] > before
    check(embed(http, [1, 2]), [[1, 2]])


def test_measures_know_no_output(http: httpx.Client, running: RunningEngine) -> None:
    running.wait_until_idle()

    def counted() -> tuple[int, ...]:
        counters = running.run(running.engine.router.stats()).counters
        return tuple(counters.get(name, 0) for name in ("generation_tokens", "prompt_tokens", "finished_stop"))

    measures = running.engine.router.measures
    before, first, ended = counted(), measures.first_token.sum, measures.ended["stop"]
    embed(http, [[1, 2, 3], [4, 5]])
    assert tuple(after - one for after, one in zip(counted(), before, strict=True)) == (0, 5, 2)
    assert (measures.first_token.sum, measures.ended["stop"]) == (first, ended + 2)
