"""Embeddings through both clients."""

import numpy as np
import pytest

from frontend.client import Client, DeadlineExceeded, InvalidRequest, Overloaded, RequestLost, embeddings
from frontend.wire import Cancel, Embed, Embedded, Refused, TextPrompt, TokenPrompt
from protocol.codec import Float32Array, pack_int32, unpack_float32
from tests.frontend.client.faces import connect
from tests.frontend.server.ipc.serving import RawClient, Served
from tpu_worker.simulator import EMBEDDING_SIZE, simulated_embedding


def expected(prompt: list[int]) -> Float32Array:
    wide = simulated_embedding(prompt, "last").astype(np.float64)
    found: Float32Array = (wide / np.linalg.norm(wide)).astype(np.float32)
    return found


def test_texts_and_tokens_in_their_order(client: Client) -> None:
    texts = ["A cat sleeps.", "The kitten naps.", "A"]
    ids = [client.tokenize(text) for text in texts]
    found = client.embed(texts)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.stack([expected(one) for one in ids]))
    np.testing.assert_array_equal(client.embed(ids), found)
    np.testing.assert_array_equal(client.embed([np.array(ids[0]), np.array(ids[1])]), found[:2])
    np.testing.assert_array_equal(client.embed(texts[0]), found[:1])
    np.testing.assert_array_equal(client.embed(ids[1]), found[1:2])
    assert client.embed([]).shape == (0, 0)


def test_more_than_a_message_holds(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "_MOST_PROMPTS", 7)
    prompts = [[index, index + 1] for index in range(60)]
    np.testing.assert_array_equal(client.embed(prompts), np.stack([expected(prompt) for prompt in prompts]))


def test_what_is_wrong_is_named(client: Client) -> None:
    for prompts, fields, param in (
        (["a", ""], {}, "prompts"),
        ([[1], [99_999]], {}, "prompts"),
        ([[{"role": "user", "content": "hi"}]], {}, "prompts"),
        (["a"], {"dimensions": 3}, "dimensions"),
        (["a"], {"dimensions": "3"}, "dimensions"),
        (["a"], {"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        (3, {}, "prompt"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            client.embed(prompts, **fields)  # type: ignore[arg-type]
        assert caught.value.param == param
    long = [1] * 9000
    with pytest.raises(InvalidRequest, match=r"maximum context length is 8192 tokens; prompts\[1\] has 9000"):
        client.embed([[1], long])
    np.testing.assert_array_equal(client.embed([long], truncate_prompt_tokens=5), expected([1] * 5)[None])


def test_one_that_takes_too_long_is_aborted(face: str, served: Served) -> None:
    before = served.count("finished_abort")
    with connect(face, served.path) as client:
        with pytest.raises(DeadlineExceeded, match="embeddings"):
            client.embed([[index] * 4000 for index in range(1, 400)], timeout=0.05)
        np.testing.assert_array_equal(client.embed([[1, 2]]), expected([1, 2])[None])
    served.running.wait_until_idle()
    assert served.count("finished_abort") > before


def test_a_connection_that_ends_takes_its_embeddings_along(served: Served) -> None:
    with RawClient(served.path) as raw:
        raw.send(Embed(1, [TokenPrompt(pack_int32([index] * 4000)) for index in range(1, 60)]))
        while not served.running.engine.router.num_requests:
            pass
    served.running.wait_until_idle()


def test_several_under_way_one_cancelled_and_too_many_refused(served: Served) -> None:
    prompts: list[TextPrompt | TokenPrompt] = [TokenPrompt(pack_int32([5, 6, 7]))]
    with RawClient(served.path) as raw:
        raw.read()  # its welcome
        raw.send(Embed(1, prompts * 300), Embed(2, prompts), Cancel(2), Embed(3, prompts), Embed(1, prompts))
        refusal, first, third = raw.read(), raw.read(), raw.read()
        assert isinstance(refusal, Refused) and refusal.request_id == 1
        assert isinstance(first, Embedded) and isinstance(third, Embedded) and (first.request_id, third.request_id) == (1, 3)
        np.testing.assert_array_equal(unpack_float32(third.embeddings_f32), expected([5, 6, 7]))
        assert third.dimensions == EMBEDDING_SIZE
        raw.send(*(Embed(index, prompts) for index in range(10, 30)))
        answers = [raw.read() for _ in range(20)]
        refused = [answer for answer in answers if isinstance(answer, Refused)]
        assert {answer.kind for answer in refused} == {"overloaded"} and len(refused) == 4


def test_the_engines_own_limits_reach_the_caller(client: Client, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frontend.server.router._MOST_REQUESTS", 8)
    with pytest.raises(Overloaded):
        client.embed([[index] * 3000 for index in range(1, 40)])
    served.running.wait_until_idle()


def test_a_fault_of_ours_concerns_one_request(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr("frontend.server.embeddings.finished", broken)
        with pytest.raises(RequestLost, match="the engine failed on this request"):
            client.embed([[1, 2]])
    np.testing.assert_array_equal(client.embed([[1, 2]]), expected([1, 2])[None])
