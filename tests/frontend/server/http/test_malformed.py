"""Whatever bytes come: an answer below 500 or the end of the connection, and nothing that stays behind."""

import asyncio
import json
import logging
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.server.http import http2
from tests.frontend.server.http.serving import Served, get, lines, on_server, post, post_chunks


def _post(*headers: str, version: str = "1.1", body: bytes = b"") -> bytes:
    return f"POST /echo HTTP/{version}\r\n{lines('Host: test', *headers)}\r\n".encode() + body


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (b"nonsense\r\n\r\n", "begins with its method"),
        (b"Nonsense\r\n\r\n", "METHOD TARGET HTTP/1.1"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "TLS"),
        (b"GET /echo\r\n\r\n", "METHOD TARGET HTTP/1.1"),
        (b"GET /echo HTTP/3.0\r\n\r\n", "METHOD TARGET HTTP/1.1"),
        (b"GET /echo ICE/1.0\r\n\r\n", "METHOD TARGET HTTP/1.1"),
        (b"GET /ec ho HTTP/1.1\r\n\r\n", "METHOD TARGET HTTP/1.1"),
        (b"GET /echo HTTP/1.1\n\n", "METHOD TARGET HTTP/1.1"),
        (b"GET /echo HTTP/1.1\r\nHost: test\n\n", ""),
        (b"GET /\xff HTTP/1.1\r\n\r\n", ""),
        (b"GET echo HTTP/1.1\r\n\r\n", ""),
        (b"GET http://[::1/echo HTTP/1.1\r\n\r\n", ""),
        (b"GET http://host:99999/echo HTTP/1.1\r\n\r\n", "no URL"),
        (b"CONNECT host:443 HTTP/1.1\r\n\r\n", "CONNECT"),
        (b"BREW /echo HTTP/1.1\r\n\r\n", "method"),
        (get("/echo", "Host: other"), "more than one host"),
        (get("/echo", "a b: c"), ""),
        (get("/echo", "nothing"), ""),
        (get("/echo", ": c"), ""),
        (get("/echo", "a: b\0c"), ""),
        (get("/echo", "a: b\r\n c"), ""),
        (_post("Content-Length: 1", "Content-Length: 1", body=b"xx"), "Content-Length"),
        (_post("Content-Length: 1", "Content-Length: 2", body=b"xx"), "Content-Length"),
        (_post("Content-Length: 1, 1", body=b"x"), "Content-Length"),
        (_post("Content-Length: -1"), "Content-Length"),
        (_post("Content-Length: 0x1", body=b"x"), "Content-Length"),
        (_post("Content-Length: 99999999999999999999999"), "Content-Length"),
        (_post("Content-Length: 4", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"), "Content-Length"),
        (_post("Transfer-Encoding: gzip, chunked"), "Transfer-Encoding"),
        (_post("Transfer-Encoding: gzip"), "Transfer-Encoding"),
        (_post("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), "Transfer-Encoding"),
        (_post("Transfer-Encoding: chunked", version="1.0"), "Transfer-Encoding"),
        (_post("Transfer-Encoding: chunked", body=b"g\r\n"), ""),
        (_post("Transfer-Encoding: chunked", body=b"1\r\nxy\r\n0\r\n\r\n"), ""),
        (_post("Transfer-Encoding: chunked", body=b"fffffffffffffffff\r\n"), ""),
        (_post("Transfer-Encoding: chunked", body=b"1\nx\n0\n\n"), ""),
    ],
)
def test_what_is_not_http_is_a_bad_request_that_says_why(sent: bytes, says: str, caplog: pytest.LogCaptureFixture) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        client.send(sent)
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        error = json.loads(answer.body)["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "malformed_request")
        assert says in error["message"]

    with caplog.at_level(logging.WARNING):
        on_server(test)
    assert not [record for record in caplog.records if record.exc_info]


def test_a_client_that_begins_with_http2_is_refused_in_its_words() -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        client.send(http2.PREFACE, b"\0\0\0\4\0\0\0\0\0")
        data, frames = await client.reader.read(), []
        while data:
            size = int.from_bytes(data[:3], "big")
            frames.append((data[3], data[4], data[9 : 9 + size]))
            data = data[9 + size :]
        assert [(kind, flags) for kind, flags, _ in frames] == [(4, 0), (1, 4), (0, 1), (7, 0)], "settings, headers, data, end"
        assert b"HTTP/2 is not spoken here; use HTTP/1.1" in frames[2][2]

    on_server(test)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl_shows_why_http2_is_refused() -> None:
    if "HTTP2" not in subprocess.run(["curl", "--version"], check=True, capture_output=True, text=True).stdout:
        pytest.skip("this curl does not speak HTTP/2")

    async def test(served: Served) -> None:
        url = f"http://127.0.0.1:{served.port}/echo"
        # Not by the event loop, which forks: that is no friend of the threads that other tests' JAX has in this process.
        curl = await asyncio.to_thread(subprocess.run, ["curl", "-sS", "-i", "--http2-prior-knowledge", url], capture_output=True)
        assert curl.stdout.startswith(b"HTTP/2 400")
        assert b"HTTP/2 is not spoken here; use HTTP/1.1" in curl.stdout

    on_server(test)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("http://elsewhere/echo?a=b", "/echo"),
        ("http://elsewhere", "/"),
        ("//elsewhere/echo", "//elsewhere/echo"),
        ("/%ff%fe", "/\ufffd\ufffd"),
        ("/a%00%0d%0a", "/a\0\r\n"),
        ("/a?%ff", "/a"),
        ("/../../etc/passwd", "/../../etc/passwd"),
        ("*", "*"),
    ],
)
def test_odd_targets_reach_the_application(target: str, path: str) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        client.send(f"GET {target} HTTP/1.1\r\nHost: [\r\n\r\n".encode())
        assert (await client.answer()).status == 200
        assert served.application.started == [path]

    on_server(test)


def test_refusals_are_logged_at_a_bounded_rate(caplog: pytest.LogCaptureFixture) -> None:
    async def test(served: Served) -> None:
        for _ in range(50):
            client = await served.connect()
            client.send(b"nonsense\r\n\r\n")
            assert (await client.answer()).status == 400

    with caplog.at_level(logging.WARNING):
        on_server(test)
    assert len(caplog.records) <= 1


_VALID = st.sampled_from([get("/echo"), post("/echo", b"body"), post_chunks("/echo", b"one", b"two"), get("/echo", version="1.0")])
_SPLICE = st.tuples(
    st.integers(0, 120), st.integers(0, 8), st.one_of(st.binary(max_size=6), st.sampled_from([b"\r\n", b"\n", b"\0", b":"]))
)


@settings(max_examples=300)
@given(st.lists(st.tuples(_VALID, st.lists(_SPLICE, max_size=3)), min_size=1, max_size=4), st.binary(max_size=20))
def test_any_bytes_get_an_answer_below_500_or_none(requests: list[tuple[bytes, list[tuple[int, int, bytes]]]], end: bytes) -> None:
    sent = b""
    for valid, splices in requests:
        mutated = valid
        for position, removed, inserted in splices:
            mutated = mutated[:position] + inserted + mutated[position + removed :]
        sent += mutated
    sent += end

    async def test(served: Served) -> None:
        client = await served.connect()
        client.send(sent)
        client.half_close()
        data = await client.reader.read()
        statuses = [line.split(b" ")[1] for line in data.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
        assert all(status in (b"100", b"200", b"400", b"413", b"431") for status in statuses)
        other = await served.connect()
        other.send(get("/echo"))
        assert (await other.answer()).status == 200

    on_server(test)
