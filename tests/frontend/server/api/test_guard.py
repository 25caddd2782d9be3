"""The key is asked for before anything is read."""

import pytest

from frontend.server.api.guard import ApiKeys, Guard
from tests.frontend.server.http.serving import Served, get, on_server, post

_SIZE = 4 << 20


@pytest.mark.parametrize("headers", [(), ("Expect: 100-continue",), ("Authorization: Bearer wrong",)])
def test_a_body_without_a_key_is_not_read(headers: tuple[str, ...]) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        request = post("/echo", b"x" * _SIZE, *headers)
        client.send(request[:-_SIZE])
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"], answer.headers["www-authenticate"]) == (401, "close", "Bearer")
        assert client.raw.startswith(b"HTTP/1.1 401 ")
        most = 0
        for _ in range(_SIZE >> 16):  # a client that sends its body all the same can read its answer, and costs nothing
            client.send(b"x" * 65536)
            await client.writer.drain()
            most = max(most, served.server.held)
        assert most == 0
        assert served.application.started == []

    on_server(test, front=lambda app: Guard(app, ApiKeys(["key"])))


def test_with_the_key_it_is_read() -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        for request in (post("/echo", b"x" * _SIZE, "Authorization: Bearer key"), get("/echo", "Authorization: bearer key")):
            client.send(request)
            assert (await client.answer()).status == 200

    on_server(test, front=lambda app: Guard(app, ApiKeys(["key"])))
