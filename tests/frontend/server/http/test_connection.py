"""Who is still there, who is not, and what is answered in which order."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.server.http.limits import Limits
from tests.frontend.server.http.serving import Served, get, on_server, post, post_chunks


@pytest.mark.parametrize("behind", [b"", get("/echo"), post("/echo", b"body"), get("/echo")[:20], get("/hold") * 50])
@pytest.mark.parametrize("path", ["/hold", "/stream"])
@pytest.mark.parametrize("leaves", ["reset", "close"])
def test_a_client_that_leaves_is_noticed_whatever_it_sent_behind(path: str, behind: bytes, leaves: str) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        client.send(get(path), behind)
        await served.application.until(lambda: served.application.running == 1)
        if path == "/stream":
            await client.reader.readuntil(b"first\r\n")
        if leaves == "reset":
            client.reset()
        else:
            await client.close()
        await served.application.until(lambda: served.application.running == 0)
        assert served.application.gone == [path]
        assert served.application.started == [path], "what was sent behind is not begun for nobody"
        await served.until(lambda: not served.server.connections)

    on_server(test, probe_seconds=0.01)


@pytest.mark.parametrize("path", ["/hold", "/stream"])
def test_a_client_that_only_closed_its_side_gets_its_answer(path: str) -> None:
    """Also when it waits for longer than there are bytes to look for it with."""

    async def test(served: Served) -> None:
        patient, hasty = await served.connect(), await served.connect()
        for client in (patient, hasty):
            client.send(get(path))
        await served.application.until(lambda: served.application.running == 2)
        hasty.half_close()
        await served.until(
            lambda: any(one._exchange is not None and one._exchange._probes == 9 for one in served.server.connections)
        )
        served.application.go.set()
        (expected,), (answer,) = [await patient.answer()], await hasty.rest()
        assert (answer.status, answer.body, answer.complete) == (200, expected.body, True)
        assert hasty.raw.count(b"HTTP/1.1 200") == 1
        await served.until(lambda: len(served.server.connections) == 1)

    on_server(test, probe_seconds=0.0001)


def test_a_client_that_closed_its_side_gets_the_answers_to_all_that_it_sent() -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        client.send(get("/hold"), post("/echo", b"four"), get("/echo"), get("/ec")[:9])
        await served.application.until(lambda: served.application.running == 1)
        client.half_close()
        await served.until(lambda: next(iter(served.server.connections))._ended)
        served.application.go.set()
        answers = await client.rest()
        assert [answer.body for answer in answers[:3]] == [b"GET /hold 0", b"POST /echo 4", b"GET /echo 0"]
        assert [answer.status for answer in answers[3:]] == [400], "it ended within a request"

    on_server(test)


@pytest.mark.parametrize("sent", [get("/echo")[:30], post("/echo", b"body")[:-1], post_chunks("/echo", b"body")[:-2]])
def test_a_request_that_ends_early_is_a_bad_request(sent: bytes) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        client.send(sent)
        client.half_close()
        (answer,) = await client.rest()
        assert answer.status == 400

    on_server(test)


def test_requests_in_a_row_are_answered_in_order_and_one_at_a_time() -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        client.send(*(post("/echo", b"x" * i) for i in range(500)))
        for i in range(500):
            assert (await client.answer()).body == b"POST /echo %d" % i
        assert served.application.most_running == 1

    on_server(test)


def test_what_is_sent_behind_a_request_is_bounded_and_the_client_still_watched() -> None:
    async def test(served: Served) -> None:
        most = 0
        one, other = await served.connect(), await served.connect()
        for client in (one, other):
            client.send(get("/hold"))
        await served.application.until(lambda: served.application.running == 2)
        for _ in range(100):
            for client in (one, other):
                client.send(b"x" * 65536)
                await client.writer.drain()
            most = max(most, served.server.held)
        assert most <= 2 * (Limits().pipelined + 65536)
        other.reset()
        await served.application.until(lambda: served.application.gone == ["/hold"])
        served.application.go.set()
        (answer,) = await one.rest()
        assert answer.body == b"GET /hold 0"

    on_server(test)


def test_a_connection_is_kept_and_closed_when_nobody_uses_it() -> None:
    assert Limits().keep_alive_seconds > 600  # what balancers keep at most

    async def test(served: Served) -> None:
        client = await served.connect()
        client.send(get("/echo"), get("/hold"))
        assert "connection" not in (await client.answer()).headers
        await served.application.until(lambda: served.application.running == 1)
        await asyncio.sleep(0.05)  # longer than an idle one is kept: this one is not idle
        served.application.go.set()
        assert (await client.answer()).status == 200
        assert await client.rest() == []

    on_server(test, keep_alive_seconds=0.01)


@pytest.mark.parametrize(
    ("request_", "keeps"),
    [
        (get("/echo", "Connection: close"), False),
        (get("/echo", version="1.0"), False),
        (get("/echo", "Connection: keep-alive", version="1.0"), True),
        (get("/stream", "Connection: keep-alive", version="1.0"), False),
        (get("/stream"), True),
        (get("/echo", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"), True),
        (post("/echo", b"body", "Connection: Upgrade", "uPGRADE: websocket"), True),
        (b"\r\n\r\n" + get("/echo"), True),
        (b"HEAD /echo HTTP/1.1\r\n\r\n", True),
    ],
)
def test_kinds_of_requests(request_: bytes, keeps: bool) -> None:
    async def test(served: Served) -> None:
        served.application.go.set()
        client = await served.connect()
        client.send(request_, get("/echo"))
        if request_.startswith(b"HEAD"):
            head = await client.reader.readuntil(b"\r\n\r\n")
            assert b"200 OK" in head
            assert b"content-length: 12" in head
        elif keeps:
            first = await client.answer()
            assert first.body in (b"GET /echo 0", b"POST /echo 4", b"firstlast")
            assert (first.headers.get("connection") == "keep-alive") == (b"HTTP/1.0" in request_)
        if keeps:
            assert (await client.answer()).body == b"GET /echo 0"
            return
        data = await client.reader.read()
        assert data.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"connection: close\r\n" in data
        assert data.endswith((b"\r\n\r\nfirstlast", b"\r\n\r\nGET /echo 0"))

    on_server(test)


def test_the_client_is_told_to_go_on_once_the_body_is_wanted() -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        body = b"x" * 1000
        whole = post("/echo", body, "Expect: 100-continue")
        client.send(whole[:-1000])
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(body)
        assert (await client.answer()).body == b"POST /echo 1000"
        client.send(whole)  # all at once: there is nothing to wait for
        assert (await client.answer()).body == b"POST /echo 1000"
        client.send(whole[:-1000].replace(b"/echo", b"/unread"))
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")

    on_server(test)


_REQUESTS = st.lists(
    st.one_of(
        st.just((get("/echo"), b"GET /echo 0")),
        st.binary(max_size=300).map(lambda body: (post("/echo", body), b"POST /echo %d" % len(body))),
        st.lists(
            st.one_of(st.binary(min_size=1, max_size=50), st.sampled_from([b"\r\n\r\n", b"\r\n\r\n0\r\n\r\n"])), max_size=5
        ).map(
            lambda chunks: (
                post_chunks("/echo", *chunks, trailers="Checksum: none\r\n" if len(chunks) % 2 else ""),
                b"POST /echo %d" % len(b"".join(chunks)),
            )
        ),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=100)
@given(_REQUESTS, st.lists(st.integers(0, 2000), max_size=12))
def test_answers_do_not_depend_on_how_the_bytes_arrive(requests: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        data = b"".join(request for request, _ in requests)
        last = 0
        for cut in sorted({*cuts, len(data)}):
            client.send(data[last:cut])
            last = cut
            await client.writer.drain()
            await asyncio.sleep(0)
        for _, expected in requests:
            assert (await client.answer()).body == expected

    on_server(test)
