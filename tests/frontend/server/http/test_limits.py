"""What strangers may take: every bound, counted in bytes, requests or connections."""

import asyncio
import logging
import resource

import pytest

from frontend.server.http import limits as limits_module
from frontend.server.http.limits import most_connections
from tests.frontend.server.http.serving import Served, get, on_server, post, post_chunks

_KIB = 1 << 10


def _head(size: int, *, line: int) -> bytes:
    """A request of so many bytes of headers, each of `line` bytes."""
    begin = b"GET /echo HTTP/1.1\r\nHost: test\r\n"
    headers, rest = divmod(size - len(begin) - 2, line)
    return begin + (b"a:" + b"b" * (line - 4) + b"\r\n") * headers + b"c:" + b"d" * (max(rest, 4) - 4) + b"\r\n\r\n"


@pytest.mark.parametrize("line", [4, 100, 1000, 60 * _KIB])
def test_headers_of_64_kib_and_no_more(line: int) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        client.send(_head(63 * _KIB, line=line))
        assert (await client.answer()).status == 200
        client.send(_head(65 * _KIB, line=line))
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (431, "close")
        assert b"headers_too_large" in answer.body

    on_server(test)


@pytest.mark.parametrize(
    "begin",
    [
        b"GET /" + b"a" * 100,
        get("/echo")[:-2] + b"Long: ",
        post_chunks("/echo")[:-5] + b"5;extension=",
        post_chunks("/echo", b"body")[:-2] + b"Trailer: ",
    ],
)
def test_what_has_no_end_is_refused_before_it_is_held(begin: bytes) -> None:
    async def test(served: Served) -> None:
        client, most, sent = await served.connect(), 0, 0
        client.send(begin)
        answer = asyncio.ensure_future(client.answer())
        while not answer.done():
            client.send(b"x" * 65536)
            await client.writer.drain()
            sent += 65536
            most = max(most, served.server.held)
            assert sent < 64 << 20
        assert (await answer).status == 431
        assert most <= 512 * _KIB

    on_server(test)


@pytest.mark.parametrize(
    ("extension", "chunks", "status"), [(b"", 20_000, 200), (b";a=b", 2000, 200), (b";a=" + b"b" * 100, 1000, 431)]
)
def test_small_chunks_are_fine_and_long_extensions_are_not(extension: bytes, chunks: int, status: int) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        client.send(post_chunks("/echo")[:-5], b"1%b\r\nx\r\n" % extension * chunks, b"0\r\n\r\n")
        answer = await client.answer()
        assert answer.status == status
        if status == 200:
            assert answer.body == b"POST /echo %d" % chunks

    on_server(test)


def test_a_body_that_is_much_work_leaves_others_their_turns() -> None:
    async def test(served: Served) -> None:
        body, turns = b"\r\n\r\n" * (1 << 15), 0  # at each of these, the body may end
        client = await served.connect()
        client.send(post_chunks("/echo", body))
        answer = asyncio.ensure_future(client.answer())
        while not answer.done():
            await asyncio.sleep(0)
            turns += 1
        assert (await answer).body == b"POST /echo %d" % len(body)
        assert turns > (1 << 15) / 100
        body, turns = b"x", 0
        client.send(post_chunks("/echo", *[body] * 20_000))  # or each chunk is of a byte
        answer = asyncio.ensure_future(client.answer())
        while not answer.done():
            await asyncio.sleep(0)
            turns += 1
        assert (await answer).body == b"POST /echo 20000"
        assert turns > 20_000 / 2000

    on_server(test)


@pytest.mark.parametrize("kind", ["announced", "chunks"])
def test_a_body_too_large_is_refused(kind: str) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        if kind == "announced":
            client.send(post("/echo", b"x" * 1001)[:-1001])  # before any of it came
        else:
            client.send(post_chunks("/echo", *[b"x" * 91] * 11))
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        assert b"body_too_large" in answer.body
        other = await served.connect()
        other.send(post("/echo", b"x" * 1000), post_chunks("/echo", *[b"x" * 100] * 10))
        assert [(await other.answer()).body for _ in range(2)] == [b"POST /echo 1000"] * 2

    on_server(test, body=1000)


def test_bodies_under_way_share_a_budget() -> None:
    async def test(served: Served) -> None:
        half = post("/echo", b"x" * 70_000)
        one, other = await served.connect(), await served.connect()
        one.send(half[:-1])
        await served.until(lambda: served.server.held >= 69_999)
        other.send(half)
        answer = await other.answer()
        assert (answer.status, answer.headers["retry-after"], answer.headers["connection"]) == (503, "1", "close")
        one.send(b"x")
        assert (await one.answer()).body == b"POST /echo 70000"
        one.send(half)  # what was taken counts no more
        assert (await one.answer()).body == b"POST /echo 70000"

    on_server(test, received=100_000)


@pytest.mark.parametrize(
    "sent", [get("/echo")[:30], get("/echo")[:1], post("/echo", b"body")[:-1], post_chunks("/echo", b"ab")[:-2]]
)
def test_a_request_that_comes_too_slowly(sent: bytes) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        client.send(sent)
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (408, "close")

    on_server(test, head_seconds=0.05, body_seconds=0.05)


@pytest.mark.parametrize("begin", [b"GET /echo HTTP/1.1\r\nLong: ", post("/echo", b"x" * (1 << 20))[: -1 << 20]])
def test_a_trickle_gains_no_time(begin: bytes) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        client.send(begin)
        answer = asyncio.ensure_future(client.answer())
        while not answer.done():
            client.send(b"x")
            await asyncio.sleep(0.001)
        assert (await answer).status == 408

    on_server(test, head_seconds=0.05, body_seconds=0.05)


def test_headers_and_trailers_count_together() -> None:
    async def test(served: Served) -> None:
        long = b"Long: " + b"x" * 30 * _KIB + b"\r\n"
        request = post_chunks("/echo", b"body").replace(b"\r\n\r\n", b"\r\n" + long + b"\r\n", 1)
        client = await served.connect()
        client.send(request[:-2], long, b"\r\n")
        assert (await client.answer()).body == b"POST /echo 4"
        client.send(request[:-2], long, long, b"\r\n")
        assert (await client.answer()).status == 431

    on_server(test)


def test_a_client_that_reads_nothing_is_given_up() -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.send(get("/flood"))
        served.application.go.set()
        await served.until(lambda: any(one.paused for one in served.server.connections))
        await served.until(lambda: not served.server.connections)
        await served.application.until(lambda: served.application.running == 0)

    on_server(test, silent_seconds=0.2)


def test_who_never_says_anything_is_hung_up_on() -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        assert await client.rest() == []

    on_server(test, head_seconds=0.02)


def test_where_connections_run_short_the_idle_make_room_and_the_busy_stay() -> None:
    async def test(served: Served) -> None:
        busy = [await served.connect() for _ in range(2)]
        for client in busy:
            client.send(get("/hold"))
        await served.application.until(lambda: served.application.running == 2)
        idle = [await served.connect() for _ in range(2)]
        for client in idle:
            client.send(get("/echo"))
            assert (await client.answer()).status == 200
        new = await served.connect()
        new.send(get("/hold"))
        assert await idle[0].rest() == [], "the one that is idle longest"
        await served.application.until(lambda: served.application.running == 3)
        last = await served.connect()
        last.send(get("/hold"))
        assert await idle[1].rest() == []
        await served.application.until(lambda: served.application.running == 4)
        refused = await served.connect()
        (answer,) = await refused.rest()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        served.application.go.set()
        for client in (*busy, new, last):
            assert (await client.answer()).status == 200

    on_server(test, connections=4)


def test_descriptors_are_left_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, most in ((1024, 768), (300, 150), (1 << 20, 16_384)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        assert most_connections() == most
    assert limits_module.Limits().turned_away < 256


def test_a_fault_of_the_application_is_an_answer_and_logged_at_a_bounded_rate(caplog: pytest.LogCaptureFixture) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        for _ in range(20):
            client = await served.connect()
            client.send(get("/fault"))
            answer = await client.answer()
            assert answer.status == 500
            assert b"internal_error" in answer.body
            assert b"LookupError" not in client.raw

    with caplog.at_level(logging.WARNING):
        on_server(test)
    assert len(caplog.records) <= 1
