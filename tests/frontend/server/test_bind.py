"""The HTTP port: had, or refused with the flag to change."""

import errno
import socket

import pytest
import uvloop
from starlette.types import Receive, Scope, Send

from frontend.server.bind import bind_http, explain
from frontend.server.http.server import HttpServer
from protocol.errors import AddressError, ConfigError


def test_a_free_port_is_had_and_can_be_had_again_at_once() -> None:
    with bind_http("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    bind_http("127.0.0.1", port).close()


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(AddressError, match=rf"port {port} on 127\.0\.0\.1 is taken: choose another with --port"):
            bind_http("127.0.0.1", port)


def test_of_two_that_bind_before_either_listens_one_is_refused() -> None:
    async def refuse_all(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError

    first = bind_http("127.0.0.1", 0)
    port = first.getsockname()[1]
    with first, bind_http("127.0.0.1", port) as second:
        first.listen()
        with pytest.raises(AddressError, match=f"port {port} on 127.0.0.1 is taken"):
            uvloop.run(HttpServer(refuse_all, second).start())


@pytest.mark.parametrize("host", ["999.1.1.1", "no-such-host.invalid", "x" * 80, "a\udcff"])
def test_a_host_that_is_not_known(host: str) -> None:
    with pytest.raises(ConfigError, match="no known host"):
        bind_http(host, 0)


def test_an_address_of_another_machine() -> None:
    with pytest.raises(AddressError, match=r"192\.0\.2\.1 is no address of this machine: choose one of its own with --host"):
        bind_http("192.0.2.1", 0)  # of the block for documentation


def test_a_port_that_this_user_may_not_have() -> None:
    assert "port 80 on 0.0.0.0 is not permitted to this user" in str(explain(OSError(errno.EACCES, "no"), "0.0.0.0", 80))
