"""Streams that are silent say so."""

import asyncio
from collections.abc import Iterator

import pytest
from starlette.types import Message

from frontend.server.api.keep_alive import KeepAlive
from protocol.config import SimulatedTimes
from tests.frontend.server.api.running import RunningEngine, another_front, demo_config, running_engine

COMMENT = ": keep-alive\n\n"


class Sent:
    """What a stream sends; `changed` whenever it does."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.changed = asyncio.Event()

    async def __call__(self, message: Message) -> None:
        assert message["type"] == "http.response.body"
        assert message["more_body"] is True
        self.pieces.append(message["body"])
        self.changed.set()

    async def until(self, count: int) -> None:
        while len(self.pieces) < count:
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), 20)


def test_comments_go_out_in_silence_and_stop_with_the_stream() -> None:
    async def test() -> None:
        sent = Sent()
        async with KeepAlive(sent, 0.001) as stream:
            await sent.until(3)
            await stream.write(b"data: 1\n\n")
            await sent.until(5)
        count = len(sent.pieces)
        for _ in range(5):
            await asyncio.sleep(0.002)
        assert len(sent.pieces) == count
        assert set(sent.pieces) == {COMMENT.encode(), b"data: 1\n\n"}
        assert sent.pieces.count(b"data: 1\n\n") == 1

    asyncio.run(test())


def test_an_interval_of_zero_says_nothing() -> None:
    async def test() -> None:
        sent = Sent()
        async with KeepAlive(sent, 0.0) as stream:
            await asyncio.sleep(0.01)
            await stream.write(b"data: 1\n\n")
        assert sent.pieces == [b"data: 1\n\n"]

    asyncio.run(test())


def test_a_client_that_does_not_read_gets_one_comment_and_not_a_pile() -> None:
    async def test() -> None:
        waiting = asyncio.Event()
        calls = 0

        async def send(_: Message) -> None:
            nonlocal calls
            calls += 1
            await waiting.wait()

        async with KeepAlive(send, 0.001):
            await asyncio.sleep(0.05)
        assert calls == 1

    asyncio.run(test())


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_while_the_first_token_is_awaited(slow: RunningEngine, path: str) -> None:
    body = {"prompt": [5] * 40, "messages": [{"role": "user", "content": "a"}], "max_tokens": 3, "ignore_eos": True, "stream": True}
    with another_front(slow, stream_keep_alive=0.02) as http:
        answer = http.post(path, json=body)
    begin, first, rest = answer.text.partition("data: ")
    assert begin
    assert begin.replace(COMMENT, "") == ""
    events = [event for event in (first + rest).split("\n\n") if event and event + "\n\n" != COMMENT]
    assert all(event.startswith("data: ") for event in events)
    assert events[-1] == "data: [DONE]"
    assert len(events) >= 3
    whole = {name: value for name, value in body.items() if name != "stream"}
    with another_front(slow, stream_keep_alive=0.02) as http:
        assert http.post(path, json=whole).headers["content-length"]
    with another_front(slow) as http:
        assert COMMENT not in http.post(path, json=body).text


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
def test_streams_of_other_formats_are_kept_alive_too(slow: RunningEngine, path: str) -> None:
    asked = {"input": "a", "max_output_tokens": 3} if path == "/v1/responses" else {"max_tokens": 3}
    body = {"model": "demo", "messages": [{"role": "user", "content": "a"}], "stream": True} | asked
    with another_front(slow, stream_keep_alive=0.02) as http:
        assert COMMENT in http.post(path, json=body).text


@pytest.fixture(scope="module")
def slow() -> Iterator[RunningEngine]:
    """An engine whose first tokens take several intervals."""
    times = SimulatedTimes(prefill_us_per_token=4000.0, decode_us=500.0)
    with running_engine(demo_config(simulated=times, enable_prefix_caching=False)) as engine:
        yield engine
