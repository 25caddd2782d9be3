"""The server against clients that do not behave, by hand-made frames."""

import asyncio
import math
import socket
from pathlib import Path

import msgspec
import pytest

from frontend.server.ipc import connection as connection_module
from frontend.server.ipc import questions
from frontend.server.ipc.server import IpcServer
from frontend.server.turns import Turns
from frontend.wire import (
    MAX_FRAME,
    WHOLE_CONNECTION,
    WIRE_VERSION,
    Accepted,
    Ask,
    Cancel,
    ChatTurn,
    Conversation,
    Delta,
    HealthReport,
    Hello,
    Refused,
    StatsReport,
    Submit,
    TextPrompt,
    TokenPrompt,
    TraceReport,
    Welcome,
    frames,
)
from protocol.codec import encode, pack_int32, unpack_int32
from protocol.params import SamplingParams
from tests.frontend.server.api.running import RunningEngine
from tests.frontend.server.ipc.serving import RawClient, Served, endless, serving


def test_hello_is_answered_with_what_the_engine_is(served: Served) -> None:
    with RawClient(served.path) as client:
        assert client.read() == Welcome(WIRE_VERSION, ("demo", "alias"), 8192, 49152)


@pytest.mark.parametrize(
    ("message", "kind"), [(Hello(WIRE_VERSION + 1), "version"), (Cancel(1), "malformed"), ([1, 2], "malformed")]
)
def test_a_client_that_begins_otherwise_is_told_and_turned_away(served: Served, message: object, kind: str) -> None:
    with RawClient(served.path, hello=False) as client:
        client.send(message)
        refused = client.expect(Refused)
        assert (refused.request_id, refused.kind) == (WHOLE_CONNECTION, kind)
        assert client.read() is None


def test_a_malformed_frame_is_dropped_counted_and_answered(served: Served) -> None:
    with RawClient(served.path) as client:
        client.socket.sendall(b"\x05\0\0\0\x91\x92\xa5" + b"ab")
        assert client.expect(Refused).kind == "malformed"
        client.send(Ask(1, "stats"))
        counters = client.expect(StatsReport).stats.counters
        assert (counters["malformed_client_frames"], counters["clients"]) == (1, 1)


def test_a_frame_beyond_the_bound_ends_that_connection_alone(served: Served) -> None:
    with RawClient(served.path) as bystander, RawClient(served.path) as client:
        client.socket.sendall((MAX_FRAME + 1).to_bytes(4, "little"))
        assert client.expect(Refused).kind == "malformed"
        assert client.read() is None
        bystander.send(Ask(1, "health"))
        assert bystander.expect(HealthReport).health.status == "ok"


def test_a_message_too_large_for_the_context_is_refused_alone(served: Served) -> None:
    with RawClient(served.path) as client:
        text = "long " * 2_000_000
        client.send(Submit(70_000, TextPrompt(text), SamplingParams()), endless(70_001, max_tokens=3))
        refused = client.expect(Refused)
        assert (refused.request_id, refused.kind, refused.param) == (70_000, "invalid", "prompt")
        while client.expect(Delta).finish_reason is None:
            pass
        client.socket.sendall(frames([b"\x90" * 10_000_000]))
        assert client.expect(Refused).request_id == WHOLE_CONNECTION
        client.send(Ask(1, "health"))
        client.expect(HealthReport)


def test_a_frame_of_very_many_messages_is_refused_before_it_is_decoded(served: Served) -> None:
    with RawClient(served.path) as client:
        frame = b"\xdd" + (200_000).to_bytes(4, "big") + encode(Cancel(1)) * 200_000
        client.socket.sendall(len(frame).to_bytes(4, "little") + frame)
        assert "messages" in client.expect(Refused).message
        client.send(*[Cancel(1)] * 50_000)
        client.send(Ask(1, "health"))
        client.expect(HealthReport)


def test_large_frames_take_turns(served: Served) -> None:
    served.server.turns = Turns(300_000)
    large = frames([encode(Submit(1, TextPrompt("x" * 200_000), SamplingParams(max_tokens=1)))])
    with RawClient(served.path) as first, RawClient(served.path) as second, RawClient(served.path) as third:
        first.socket.sendall(large[:-1])
        first.send()
        while not served.server.turns._taken:
            third.send(Ask(1, "health"))
            third.expect(HealthReport)
        second.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):  # nobody reads what goes beyond the kernel's buffers
            second.socket.sendall(frames([encode(Submit(1, TextPrompt("x" * 2_000_000), SamplingParams(max_tokens=1)))]))
        third.send(Ask(1, "health"))
        third.expect(HealthReport)
        first.socket.sendall(large[-1:])
        assert first.expect(Refused).code == "context_length_exceeded"
    assert served.running.run(_taken(served)) == 0


async def _taken(served: Served) -> int:
    while served.server.connections:
        await asyncio.sleep(0.001)
    return served.server.turns._taken


def test_who_sends_and_does_not_read_waits(served: Served) -> None:
    sent, data = 0, frames([encode(Ask(1, "health"))] * 50_000)
    with RawClient(served.path) as client, RawClient(served.path) as other:
        client.socket.settimeout(1.0)
        try:
            while sent < 1 << 30:
                sent += client.socket.send(data[sent % len(data) :])
        except TimeoutError:
            pass
        assert sent < 1 << 24
        other.send(Ask(1, "health"))
        other.expect(HealthReport)
        client.socket.settimeout(20)
        client.expect(HealthReport)


def test_every_delta_says_how_much_of_the_prompt_was_cached(served: Served) -> None:
    params = SamplingParams(max_tokens=6, seed=0, ignore_eos=True)
    prompt = TokenPrompt(pack_int32([77] * 40))
    with RawClient(served.path) as client:
        client.send(Submit(1, prompt, params, stream=False))
        assert client.expect(Delta).num_cached_tokens == 0
        client.send(Submit(2, prompt, params))
        deltas = [client.expect(Delta)]
        while deltas[-1].finish_reason is None:
            deltas.append(client.expect(Delta))
        assert {delta.num_cached_tokens for delta in deltas} == {32}
        client.send(Submit(3, prompt, SamplingParams(max_tokens=50, seed=0, stop=[deltas[0].text + deltas[1].text]), stream=False))
        stopped = client.expect(Delta)
        assert (stopped.finish_reason, stopped.num_cached_tokens) == ("stop", 32)


def test_prompts_of_every_kind(served: Served) -> None:
    params = SamplingParams(max_tokens=4, seed=0, ignore_eos=True)
    with RawClient(served.path) as client:
        client.send(Submit(1, TextPrompt("Hello there"), params, stream=False))
        accepted = client.expect(Accepted)
        text = client.expect(Delta)
        client.send(Submit(2, TokenPrompt(accepted.prompt_i32), params, stream=False))
        ids = client.read()
        assert isinstance(ids, Delta)
        assert (ids.request_id, ids.text, ids.token_ids) == (2, text.text, text.token_ids)
        client.send(Submit(3, Conversation([ChatTurn("user", ["Hello", "<|im_start|>there"])]), params, stream=False))
        assert len(unpack_int32(client.expect(Accepted).prompt_i32)) > len(unpack_int32(accepted.prompt_i32))
        assert client.expect(Delta).finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (TokenPrompt(b""), "prompt"),
        (TokenPrompt(b"abc"), "prompt"),
        (TokenPrompt(pack_int32([-1])), "prompt"),
        (TokenPrompt(pack_int32([49152])), "prompt"),
        (TokenPrompt(pack_int32([1] * 8192)), "prompt"),
        (TextPrompt("long " * 500_000), "prompt"),
        (Conversation([]), "messages"),
        (Conversation([ChatTurn("nobody", "hi")]), "messages[0].role"),
        (Conversation([ChatTurn("user", None)]), "messages[0].content"),
        (Conversation([ChatTurn("user", "long " * 500_000)]), "messages"),
    ],
)
def test_prompts_that_are_none(served: Served, prompt: TokenPrompt | TextPrompt | Conversation, param: str) -> None:
    with RawClient(served.path) as client:
        client.send(Submit(1, prompt, SamplingParams(max_tokens=1)))
        refused = client.expect(Refused)
        assert (refused.request_id, refused.kind, refused.param) == (1, "invalid", param)


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"seed": 2**64 - 1}, "seed"),
        ({"seed": -(2**63), "max_tokens": 2**63}, "max_tokens"),
        ({"stop_token_ids": [2**64 - 1]}, "stop_token_ids"),
        ({"priority": 2**40}, "priority"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_p": math.nan}, "top_p"),
        ({"temperature": "hot"}, "temperature"),
        ({"seed": 0.5}, "seed"),
        ({"stop": ["a", 5]}, "stop[1]"),
        ({"heat": 5}, "params"),
        ("hot", "params"),
    ],
)
def test_parameters_that_are_none_are_named_and_concern_one_request(served: Served, params: object, param: str) -> None:
    with RawClient(served.path) as client:
        good = endless(1, max_tokens=3)
        client.send(good, ["submit", 2, ["tokens", pack_int32([1])], params], msgspec.structs.replace(good, request_id=3))
        refused = client.expect(Refused)
        assert (refused.request_id, refused.kind, refused.param) == (2, "invalid", param)
        assert param.partition("[")[0] in refused.message
        ended: set[int] = set()
        while ended != {1, 3}:
            if (delta := client.expect(Delta)).finish_reason is not None:
                ended.add(delta.request_id)


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (["submit", 1, ["tokens", 5], {}], "prompt"),
        (["submit", 1, ["poem", "x"], {}], "prompt"),
        (["submit", 1, ["conversation", [["user"]]], {}], "prompt"),
        (["submit", 1, ["tokens", b""], {}, "yes"], "stream"),
        (["submit", 1, ["tokens", b""], {}, True, 5], "cache_salt"),
        (["ask", 1, "the time"], "what"),
        (["submit", 1], None),
        (["nonsense", 1], None),
    ],
)
def test_a_message_of_a_wrong_shape_is_refused_by_its_number(served: Served, message: list[object], param: str | None) -> None:
    with RawClient(served.path) as client:
        client.send(message)
        refused = client.expect(Refused)
        assert (refused.request_id, refused.kind, refused.param) == (1, "invalid", param)


def test_a_frame_of_hardly_any_messages_is_refused_as_a_whole(served: Served) -> None:
    with RawClient(served.path) as client:
        client.send(*[["nonsense", request_id] for request_id in range(1, 1000)])
        assert (refused := client.expect(Refused)).kind == "malformed" and refused.request_id == WHOLE_CONNECTION
        client.send(Ask(1, "health"))
        assert isinstance(client.read(), HealthReport)


def test_nothing_is_heard_behind_the_word_that_ends_the_connection(served: Served) -> None:
    with RawClient(served.path, hello=False) as client:
        client.send(Hello(WIRE_VERSION + 1), Hello(WIRE_VERSION), endless(1))
        assert client.expect(Refused).kind == "version"
        assert client.read() is None
    served.running.wait_until_idle()


def test_an_absurd_n_is_refused_before_it_is_multiplied(served: Served) -> None:
    with RawClient(served.path) as client:
        client.send(endless(1, n=10**9))
        refused = client.expect(Refused)
        assert (refused.kind, refused.param) == ("invalid", "n")


def test_request_ids_must_rise(served: Served) -> None:
    with RawClient(served.path) as client:
        client.send(endless(5), endless(5), endless(4), endless(WHOLE_CONNECTION))
        assert [client.expect(Refused).kind for _ in range(3)] == ["malformed"] * 3
        client.send(Cancel(5))
    served.running.wait_until_idle()


def test_a_cancelled_request_says_no_more_also_when_it_had_not_begun(served: Served) -> None:
    with RawClient(served.path) as client:
        client.send(endless(1), Cancel(1), Cancel(1), Cancel(77), endless(2, max_tokens=3))
        deltas = [client.expect(Delta)]
        while deltas[-1].finish_reason is None:
            deltas.append(client.expect(Delta))
        assert {delta.request_id for delta in deltas} == {2}


def test_a_client_that_leaves_takes_its_requests_with_it(served: Served) -> None:
    aborted = served.count("finished_abort")
    with RawClient(served.path) as client:
        client.send(*(endless(request_id, n=2) for request_id in range(1, 6)))
        seen: set[tuple[int, int]] = set()
        while len(seen) < 10:
            delta = client.expect(Delta)
            seen.add((delta.request_id, delta.index))
    served.running.wait_until_idle()
    assert served.count("finished_abort") == aborted + 10


def test_what_a_slow_reader_does_not_read_merges_and_is_not_lost(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "_PAUSE_BYTES", 1)
    length = 1200  # steps: four times as many writes as the kernel's buffer holds
    with RawClient(served.path) as client:
        client.send(endless(1, max_tokens=length))
        client.expect(Welcome)
        with RawClient(served.path) as other:  # runs behind it, and is not held up
            other.send(endless(1, max_tokens=length + 10))
            while other.expect(Delta).finish_reason is None:
                pass
        deltas = [client.expect(Delta)]
        while deltas[-1].finish_reason is None:
            deltas.append(client.expect(Delta))
    assert sum(len(delta.token_ids) for delta in deltas) == length
    assert len(deltas) < length


def test_a_client_that_asks_and_never_reads_is_disconnected(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "_MOST_UNREAD", 10_000)
    with RawClient(served.path) as client:
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            flood(client)
        with RawClient(served.path) as other:
            other.expect(Welcome)


def flood(client: RawClient) -> None:
    for _ in range(10_000):
        client.send(*(Ask(request_id, "health") for request_id in range(1, 100)))


def test_a_few_questions_wait_and_those_beyond_are_refused(served: Served) -> None:
    most = questions._MOST_QUESTIONS
    with RawClient(served.path) as client:
        client.send(*(Ask(request_id, "trace" if request_id % 2 else "stats") for request_id in range(1, 2 * most + 1)))
        client.send(Ask(2 * most + 1, "health"))
        refused = [client.expect(Refused) for _ in range(most)]
        assert [one.request_id for one in refused] == list(range(most + 1, 2 * most + 1))
        assert {one.kind for one in refused} == {"overloaded"} and refused[0].retry_after > 0
        answered = [client.read() for _ in range(most + 1)]
        assert isinstance(answered.pop(0), HealthReport)
        assert [one.request_id for one in answered if isinstance(one, StatsReport | TraceReport)] == list(range(1, most + 1))
        client.send(Ask(2 * most + 2, "stats"))
        client.expect(StatsReport)


def test_a_connection_holds_so_many_requests_and_no_more(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frontend.server.ipc.requests._MOST_REQUESTS", 2)
    with RawClient(served.path) as client:
        client.send(endless(1), endless(2), endless(3))
        refused = client.expect(Refused)
        assert (refused.request_id, refused.kind) == (3, "overloaded")
        assert refused.retry_after > 0


def test_the_end_finds_requests_running_and_says_so(running: RunningEngine, tmp_path: Path) -> None:
    with serving(running, tmp_path / "api.sock") as served:
        client = RawClient(served.path)
        client.send(endless(1))
        client.expect(Delta)
    with client:
        refused = client.expect(Refused)
        assert (refused.request_id, refused.kind) == (1, "lost")
        assert client.read() is None
    assert not (tmp_path / "api.sock").exists()
    running.wait_until_idle()


def test_a_client_that_does_not_read_cannot_hold_up_the_end(running: RunningEngine, tmp_path: Path) -> None:
    with serving(running, tmp_path / "api.sock", grace=0.2) as served:
        client = RawClient(served.path)
        client.send(endless(1), *(Ask(request_id, "health") for request_id in range(2, 20_000)))
        with RawClient(served.path) as other:
            other.send(Ask(1, "health"))
            other.expect(HealthReport)
    client.socket.close()


def test_who_connects_before_the_engine_is_ready_waits(running: RunningEngine, tmp_path: Path) -> None:
    server = IpcServer(tmp_path / "api.sock")
    server.bind()
    with RawClient(tmp_path / "api.sock") as client:
        client.socket.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.read()
        client.socket.settimeout(20)
        running.run(server.start(running.engine))
        client.expect(Welcome)
    running.loop.call_soon_threadsafe(server.stop_accepting)
    running.run(server.finish())


def test_a_half_closed_connection_ends(served: Served) -> None:
    with RawClient(served.path) as client:
        client.send(endless(1))
        client.expect(Delta)
        client.socket.shutdown(socket.SHUT_WR)
        while client.read() is not None:
            pass
    served.running.wait_until_idle()
