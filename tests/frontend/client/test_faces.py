"""Both clients on a running engine."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import numpy as np
import pytest

from frontend.client import (
    Client,
    DeadlineExceeded,
    EngineUnavailable,
    InvalidRequest,
    Overloaded,
    RequestLost,
    SamplingParams,
    batch,
)
from frontend.server import router as router_module
from frontend.server.ipc.server import IpcServer
from frontend.wire import WIRE_VERSION, Delta, Welcome, frames
from protocol.codec import encode
from tests.frontend.client.faces import connect
from tests.frontend.server.ipc.serving import Served, serving

SHORT = SamplingParams(max_tokens=6, seed=1, ignore_eos=True)
ENDLESS = SamplingParams(seed=1, ignore_eos=True)


def test_answers_come_in_the_order_of_the_prompts(client: Client) -> None:
    lengths = [9, 1, 30, 2, 17]
    params = [SamplingParams(max_tokens=length, seed=index, ignore_eos=True) for index, length in enumerate(lengths)]
    outputs = client.generate([f"prompt {index}" for index in range(5)], params, progress=False)
    assert [len(output.token_ids) for output in outputs] == lengths
    assert [output.prompt for output in outputs] == [f"prompt {index}" for index in range(5)]
    assert [output.usage.completion_tokens for output in outputs] == lengths
    alone = client.generate("prompt 2", params[2])
    assert (alone[0].text, alone[0].token_ids) == (outputs[2].text, outputs[2].token_ids)
    assert alone[0].finish_reason == "length"


def test_the_same_answer_whole_streamed_submitted_as_ids_and_over_http(client: Client, served: Served) -> None:
    (whole,) = client.generate("One way", SHORT)
    deltas = list(client.stream("One way", SHORT))
    assert "".join(delta.text for delta in deltas) == whole.text
    assert [token for delta in deltas for token in delta.token_ids] == whole.token_ids
    assert [delta.finish_reason for delta in deltas][-1] == "length"
    assert client.submit("One way", SHORT).result(timeout=30) == whole
    for ids in (whole.prompt_token_ids, tuple(whole.prompt_token_ids), np.array(whole.prompt_token_ids)):
        (by_ids,) = client.generate(ids, SHORT)
        assert (by_ids.prompt, by_ids.prompt_token_ids, by_ids.text) == (None, whole.prompt_token_ids, whole.text)
    body = {"model": "demo", "prompt": "One way", "max_tokens": 6, "seed": 1, "ignore_eos": True}
    answer = httpx.post(served.running.url + "/v1/completions", json=body).json()
    assert answer["choices"][0]["text"] == whole.text


def test_chat_renders_the_template_that_http_renders(client: Client, served: Served) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    output = client.chat(messages, SHORT)
    body = {"model": "demo", "messages": messages, "max_tokens": 6, "seed": 1, "ignore_eos": True}
    answer = httpx.post(served.running.url + "/v1/chat/completions", json=body).json()
    assert output.text == answer["choices"][0]["message"]["content"]
    assert output.usage.prompt_tokens == answer["usage"]["prompt_tokens"]
    assert "".join(delta.text for delta in client.stream(messages, SHORT)) == output.text
    opened = client.chat([*messages, {"role": "assistant", "content": "Well"}], SHORT, continue_final_message=True)
    assert opened.prompt_token_ids[: len(output.prompt_token_ids)] == output.prompt_token_ids


def test_parameters_by_name_are_those_of_an_object(client: Client) -> None:
    (whole,) = client.generate("One way", SHORT)
    assert client.generate("One way", max_tokens=6, seed=1, ignore_eos=True) == [whole]
    assert client.submit("One way", SHORT, max_tokens=3).result(timeout=30).token_ids == whole.token_ids[:3]
    streamed = [token for delta in client.stream("One way", SHORT, max_tokens=3) for token in delta.token_ids]
    assert streamed == whole.token_ids[:3]
    assert [one.token_ids for one in client.generate(["One way"] * 2, [SHORT] * 2, max_tokens=2)] == [whole.token_ids[:2]] * 2
    with pytest.raises(InvalidRequest, match="top_p"):
        client.generate("One way", top_p=2.0)
    with pytest.raises(TypeError, match="max_tokens"):
        client.submit("One way", max_token=2)  # type: ignore[call-arg]


def test_a_chat_streams_where_asked(client: Client) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    whole = client.chat(messages, SHORT)
    assert "".join(delta.text for delta in client.chat(messages, SHORT, stream=True)) == whole.text
    stream = client.chat(messages, stream=True, ignore_eos=True)
    assert next(stream).token_ids
    stream.close()
    with pytest.raises(InvalidRequest, match="timeout"):
        client.chat(messages, stream=True, timeout=1.0)


def test_a_cache_salt_goes_with_every_method(client: Client) -> None:
    prompt, mine = [7] * 100, uuid4().hex  # the engine is shared by the tests
    assert client.generate(prompt, SHORT, cache_salt=mine)[0].num_cached_tokens == 0
    assert client.generate(prompt, SHORT, cache_salt=mine)[0].num_cached_tokens > 0
    assert client.generate(prompt, SHORT, cache_salt=uuid4().hex)[0].num_cached_tokens == 0
    messages = [{"role": "user", "content": "A question of many words. " * 20}]
    assert client.chat(messages, SHORT, cache_salt=mine).num_cached_tokens == 0
    assert client.chat(messages, SHORT, cache_salt=mine).num_cached_tokens > 0
    assert client.chat(messages, SHORT, cache_salt=uuid4().hex).num_cached_tokens == 0


def test_representations_are_short_and_say_how_things_stand(client: Client) -> None:
    assert "SmolLM2" in repr(client) or "demo" in repr(client)
    handle = client.submit([5] * 1000, ENDLESS)
    assert repr(handle) == "<Handle 1: under way>"
    assert "1 requests under way" in repr(client)
    handle.cancel()
    assert repr(handle) == "<Handle 1: the request was cancelled>"
    (output,) = client.generate([5] * 1000, SHORT)
    assert "[5, 5, 5, 5, 5, 5, 5, 5, … (1000 tokens)]" in repr(output)
    assert "finish_reason='length'" in repr(output)
    client.close()
    assert "the client is closed" in repr(client)


def test_each_of_n_outputs_has_its_own_seed(client: Client) -> None:
    (output,) = client.generate("Three", SamplingParams(max_tokens=5, seed=10, n=3, ignore_eos=True))
    alone = client.generate(["Three"] * 3, [SamplingParams(max_tokens=5, seed=10 + index, ignore_eos=True) for index in range(3)])
    assert [one.token_ids for one in output.outputs] == [one.token_ids for one in alone]
    assert [one.index for one in output.outputs] == [0, 1, 2]
    assert output.usage.completion_tokens == 15
    streamed: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for delta in client.stream("Three", SamplingParams(max_tokens=5, seed=10, n=3, ignore_eos=True)):
        streamed[delta.index] += delta.token_ids
    assert list(streamed.values()) == [one.token_ids for one in output.outputs]


def test_a_stop_string_ends_the_text_and_the_count(client: Client) -> None:
    (free,) = client.generate("Stop", SamplingParams(max_tokens=40, seed=3, ignore_eos=True))
    word = free.text[10:14]
    (stopped,) = client.generate("Stop", SamplingParams(max_tokens=40, seed=3, ignore_eos=True, stop=[word]))
    assert stopped.text == free.text[: free.text.index(word)]
    assert (stopped.finish_reason, stopped.outputs[0].stop_reason) == ("stop", word)
    assert len(stopped.token_ids) < 40


def test_more_prompts_than_the_window_holds(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "_WINDOW", 4)
    outputs = client.generate([[index + 1] for index in range(25)], SHORT, progress=False)
    assert [output.prompt_token_ids for output in outputs] == [[index + 1] for index in range(25)]
    assert client.generate([]) == []


def test_progress_is_shown_when_asked_and_not_without_a_terminal(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    client.generate(["a", "b"], SHORT)
    assert capsys.readouterr() == ("", "")
    client.generate(["a", "b"], SHORT, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "2/2" in shown.err
    assert "tokens/s" in shown.err


def test_requests_go_on_while_another_is_waited_for(client: Client) -> None:
    handles = [client.submit([index + 1], SHORT) for index in range(10)]
    last = client.submit([99], SamplingParams(max_tokens=200, seed=1, ignore_eos=True))
    assert not last.done
    last.result(timeout=30)
    assert all(handle.done for handle in handles)
    assert [len(handle.result().token_ids) for handle in handles] == [6] * 10


def test_done_looks_for_news(client: Client) -> None:
    handle = client.submit([5], SHORT)
    deadline = time.monotonic() + 30
    while not handle.done:
        assert time.monotonic() < deadline


def test_leaving_a_stream_aborts_the_request(client: Client, served: Served) -> None:
    aborted = served.count("finished_abort")
    for _ in client.stream("endless", ENDLESS):
        break
    stream = client.stream("endless", ENDLESS)
    next(stream)
    stream.close()
    assert list(stream) == []
    never_read = client.stream("endless", ENDLESS)
    del never_read
    handle = client.submit("endless", ENDLESS)
    handle.cancel()
    handle.cancel()
    with pytest.raises(RequestLost, match="cancelled"):
        handle.result()
    assert client.generate("still here", SHORT)
    served.running.wait_until_idle()
    assert served.count("finished_abort") - aborted in (2, 3, 4)  # a request that had not reached the scheduler is none of its


def test_time_runs_out(client: Client, served: Served) -> None:
    with pytest.raises(DeadlineExceeded, match=r"0\.05 s"):
        client.submit("endless", ENDLESS).result(timeout=0.05)
    with pytest.raises(DeadlineExceeded, match="[01] of 2 answers"):  # the short one may need longer on a busy machine
        client.generate(["a", "b"], [SamplingParams(max_tokens=1), ENDLESS], timeout=0.3)
    with pytest.raises(DeadlineExceeded):
        client.chat([{"role": "user", "content": "a"}], ENDLESS, timeout=0.05)
    served.running.wait_until_idle()


def test_one_wrong_request_of_many_aborts_the_rest(client: Client, served: Served) -> None:
    with pytest.raises(InvalidRequest) as refused:
        client.generate([[1], [2] * 9000, [3]], ENDLESS)
    assert refused.value.param == "prompt"
    served.running.wait_until_idle()


def test_overload_says_when_to_come_back(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_module, "_MOST_REQUESTS", 4)  # of which one client may have half
    running = [client.stream("endless", ENDLESS) for _ in range(2)]
    assert [bool(next(stream).token_ids) for stream in running] == [True, True]
    with pytest.raises(Overloaded) as refused:
        client.generate("one more", SHORT)
    assert refused.value.retry_after > 0


def test_stories(client: Client) -> None:
    client.generate("tell", SamplingParams(max_tokens=2, n=2), progress=False)
    latest = client.story()
    assert [move.after for move in latest[-1].moves] == ["waiting", "prefilling", "decoding", "finished"]
    assert latest[-1].now_ns >= latest[-1].moves[-1].at_ns
    (same,) = client.story(latest[-1].request_id)
    assert same.moves == latest[-1].moves
    for nobody in ("nobody", "9" * 18, "0" * 400 + "1", "chatcmpl-", "\0", 0, -1):
        assert client.story(nobody) == ()


def test_health_statistics_and_trace(client: Client) -> None:
    health = client.health()
    assert (health.status, health.workers, health.workers_wanted, health.model) == ("ok", 1, 1, "demo")
    before = client.stats().counters["generation_tokens"]
    stream = client.stream("count", SHORT)
    assert sum(len(delta.token_ids) for delta in stream) == 6
    stats = client.stats()
    assert stats.counters["generation_tokens"] == before + 6
    assert stats.counters["malformed_client_frames"] == 0
    steps = client.trace()
    delivered, answered = steps["delivered_ns"], steps["answered_ns"]
    assert len(steps) >= 6
    assert delivered.any()
    assert (delivered[delivered > 0] >= steps["collected_ns"][delivered > 0]).all()
    assert len(answered) == len(delivered)


def test_the_engine_goes_while_requests_wait(face: str, served: Served, tmp_path: Path) -> None:
    with serving(served.running, tmp_path / "api.sock") as other:
        client = connect(face, other.path, reconnect=0)
        stream = client.stream("endless", ENDLESS)
        next(stream)
        handle = client.submit("endless", ENDLESS)
    with client:
        with pytest.raises(RequestLost):
            handle.result(timeout=30)
        with pytest.raises(RequestLost):
            list(stream)
        assert list(stream) == []
        with pytest.raises(RequestLost):
            client.health()
        with pytest.raises(RequestLost):
            client.generate("too late", SHORT)


def test_after_close_everything_says_so(served: Served) -> None:
    client = Client(served.path)
    handle = client.submit("endless", ENDLESS)
    client.close()
    client.close()
    with pytest.raises(RequestLost, match="closed"):
        handle.result()
    with pytest.raises(RequestLost, match="closed"):
        client.stats()


def test_nobody_there(face: str, tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match=r"gone\.sock.*engine-launch --ipc"):
        connect(face, tmp_path / "gone.sock")


def test_an_engine_that_is_not_ready(face: str, served: Served, tmp_path: Path) -> None:
    server = IpcServer(tmp_path / "api.sock")
    server.bind()
    with pytest.raises(DeadlineExceeded, match=r"api\.sock was not ready within 0\.05 s"):
        connect(face, tmp_path / "api.sock", connect_timeout=0.05)
    with ThreadPoolExecutor(1) as thread:
        early = thread.submit(connect, face, tmp_path / "api.sock")
        server.close()  # it ended while it was starting
        with pytest.raises(EngineUnavailable):
            early.result()


def test_an_engine_that_reads_nothing_cannot_hold_up_the_end_of_the_time(face: str, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as thread:
        listener.bind(str(tmp_path / "api.sock"))
        listener.listen()
        connecting = thread.submit(connect, face, tmp_path / "api.sock")
        connection, _ = listener.accept()
        with connection:
            connection.sendall(frames([encode(Welcome(WIRE_VERSION, ("demo",), 1 << 22, 50))]))
            with connecting.result() as client, pytest.raises(DeadlineExceeded, match="0 of 1"):
                client.generate([[1] * (1 << 20)], timeout=0.2)


def test_an_engine_that_does_not_read_before_it_is_read_gets_its_way(face: str, tmp_path: Path) -> None:
    """Both have more to say than the socket holds: who only sends waits for ever."""
    ending = Delta(1, 0, "x" * (1 << 22), [], "length")

    def serve() -> None:
        with listener.accept()[0] as connection:
            connection.recv(1 << 16)
            connection.sendall(frames([encode(Welcome(WIRE_VERSION, ("demo",), 1 << 22, 50))]))
            connection.recv(4)
            connection.sendall(frames([encode(ending)]))
            while connection.recv(1 << 20):
                pass

    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as thread:
        listener.bind(str(tmp_path / "api.sock"))
        listener.listen()
        serving = thread.submit(serve)
        with connect(face, tmp_path / "api.sock") as client:
            assert client.submit([1] * (1 << 20)).result().text == ending.text
        serving.result()


def test_a_limit_beyond_the_context_is_clipped_and_said(client: Client) -> None:
    context = 8192
    (output,) = client.generate([5] * (context - 3), max_tokens=context, ignore_eos=True)
    assert (len(output.token_ids), output.max_tokens_clipped) == (3, 3)
    assert "max_tokens_clipped=3" in repr(output)
    assert client.submit("A text", SHORT).result(timeout=30).max_tokens_clipped is None


def test_prompts_are_scored_as_over_http(client: Client, served: Served) -> None:
    (output,) = client.generate("One way or another", max_tokens=0, prompt_logprobs=2, n=2)
    body = {"model": "demo", "prompt": "One way or another", "max_tokens": 1, "prompt_logprobs": 2}
    shown = httpx.post(served.running.url + "/v1/completions", json=body).json()["choices"][0]["prompt_logprobs"]
    assert output.prompt_logprobs is not None and output.prompt_logprobs[0] is None and len(output.prompt_logprobs) == 4
    for token_id, found, entries in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], shown[1:], strict=True):
        assert found is not None and found.token_id == token_id
        assert (found.logprob, found.rank) == (entries[str(token_id)]["logprob"], entries[str(token_id)]["rank"])
        assert {str(other): value for other, value in found.top}.items() <= {k: e["logprob"] for k, e in entries.items()}.items()
    assert [(one.text, one.token_ids, one.finish_reason) for one in output.outputs] == [("", [], "length")] * 2
    with pytest.raises(InvalidRequest, match="not with streams"):
        list(client.stream("One", prompt_logprobs=0))


def test_tokens_are_ruled_out_and_favoured(client: Client) -> None:
    (output,) = client.generate(
        "One way", max_tokens=9, allowed_token_ids=[100, 101, 102], logit_bias={100: -100.0}, bad_words=["~"]
    )
    assert set(output.token_ids) <= {101, 102}
    with pytest.raises(InvalidRequest, match="allowed_token_ids"):
        client.generate("One way", allowed_token_ids=[])


def test_texts_and_token_ids_turn_into_each_other(client: Client, served: Served) -> None:
    (output,) = client.generate("One way", SHORT)
    assert client.tokenize("One way") == output.prompt_token_ids
    assert client.detokenize(output.prompt_token_ids) == "One way"
    assert client.detokenize(np.array(output.token_ids)) == output.text
    assert client.detokenize([]) == ""
    messages = [{"role": "user", "content": "Hello"}]
    assert client.tokenize(messages) == client.chat(messages, SHORT).prompt_token_ids
    body = {"prompt": "A longer text. " * 200}
    assert client.tokenize(body["prompt"]) == httpx.post(served.running.url + "/tokenize", json=body).json()["tokens"]
    for wrong, param in ((lambda: client.detokenize([10**6]), "tokens"), (lambda: client.tokenize("x" * 3_000_000), "prompt")):
        with pytest.raises(InvalidRequest) as caught:
            wrong()
        assert caught.value.param == param
    with pytest.raises(InvalidRequest, match="tokens must be"):
        client.detokenize("a text")  # type: ignore[arg-type]
    assert client.tokenize("still there")


WEATHER: dict[str, object] = {
    "name": "weather",
    "description": "The weather at a place.",
    "parameters": {
        "type": "object",
        "properties": {"place": {"type": "string", "maxLength": 5}},
        "required": ["place"],
        "additionalProperties": False,
    },
}


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tools": [{"name": "two words"}]}, "tools[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1]"),
        ({"tools": [WEATHER], "tool_choice": "rain"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
)
def test_what_is_wrong_with_tools_is_named(client: Client, options: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.chat([{"role": "user", "content": "a"}], SHORT, **options)
    assert caught.value.param == param


def test_a_timeout_among_the_parameters_ends_streams_too(client: Client) -> None:
    stream = client.stream("endless", msgspec.structs.replace(ENDLESS, timeout=0.2))
    next(stream)
    with pytest.raises(DeadlineExceeded, match="0.2 s of its timeout"):
        list(stream)
