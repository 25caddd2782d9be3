"""Every answer has a name, whoever gives it."""

import re

import pytest

from frontend.server.http import http2
from frontend.server.visit import is_name
from tests.frontend.server.http.serving import Served, get, on_server, post

OURS = re.compile(r"[0-9a-f]{24}")


@pytest.mark.parametrize("given", ["abc-123", "550e8400-e29b-41d4-a716-446655440000", "x" * 256, "a/b:c;d=e"])
def test_the_clients_own_comes_back(given: str) -> None:
    assert is_name(given.encode())


@pytest.mark.parametrize("given", [b"", b"x" * 257, b"tab\t", b"\xff\xfe", "ä".encode(), b"a\x00b", b"a\x7f"])
def test_what_cannot_be_said_back_is_replaced(given: bytes) -> None:
    assert not is_name(given)


@pytest.mark.parametrize("path", ["/echo", "/unread", "/fault", "/stream"])
def test_answers_of_the_application_streams_and_faults(path: str) -> None:
    async def test(served: Served) -> None:
        served.application.go.set()
        client = await served.connect()
        client.send(get(path, "X-Request-Id: mine"))
        assert (await client.answer()).headers["x-request-id"] == "mine"
        client = await served.connect()
        client.send(get(path))
        assert OURS.fullmatch((await client.answer()).headers["x-request-id"])

    on_server(test)


@pytest.mark.parametrize(
    ("request_", "status", "named"),
    [
        (b"NONSENSE\r\n\r\n", 400, False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nX-Request-Id: mine\r\n\r\n", 400, False),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000, 431, False),
        (post("/echo", b"", "X-Request-Id: mine").replace(b"Content-Length: 0", b"Content-Length: 99999999"), 413, False),
        (post("/hold", b"x", "X-Request-Id: mine").replace(b"Content-Length: 1", b"Content-Length: 5"), 408, True),
    ],
)
def test_refusals_of_the_connection(request_: bytes, status: int, named: bool) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        client.send(request_)
        answer = await client.answer()
        assert answer.status == status
        assert answer.headers["x-request-id"] == "mine" if named else OURS.fullmatch(answer.headers["x-request-id"])

    on_server(test, body_seconds=0.05)


def test_a_refusal_in_http_2_has_one_too() -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        client.send(http2.PREFACE + bytes(9))
        data = b""
        while piece := await client.reader.read(65536):
            data += piece
        assert re.search(rb"\x00\x0cx-request-id\x18[0-9a-f]{24}", data)

    on_server(test)
