"""Pipes between hosts, over loopback: who gets in, and who is heard to leave."""

import contextlib
import socket
from collections.abc import Callable

import pytest

from protocol.channel import ChannelFullError, Poller
from protocol.clock import now
from protocol.config import EngineConfig
from protocol.errors import AddressError, ConfigError
from protocol.host_messages import HostHello, HostsEnd
from protocol.host_pipes import FollowerPipes, LeaderPipes, coordinator_address, resolve, resolve_all
from tests.ports import ports_in_a_row

_LOCAL = ("127.0.0.1", "127.0.0.1")
_LIMIT = 20.0  # seconds
_TOKEN = "a token that is long enough"


def config(port: int, secret: str = "") -> EngineConfig:
    return EngineConfig(
        model_path="/m", model_format="gguf", served_model_names=("m",), hosts=_LOCAL, hosts_port=port, hosts_secret=secret
    )


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = now() + _LIMIT
    while not condition():
        assert now() < deadline, f"never came: {what}"


@pytest.mark.parametrize("secret", ["", _TOKEN])
def test_what_is_said_arrives_and_an_end_is_heard_of(secret: str) -> None:
    port = ports_in_a_row(2)
    follower = FollowerPipes(config(port, secret), "127.0.0.1")  # before there is a leader
    leader = LeaderPipes(config(port, secret), _LOCAL)
    follower.reports.send(HostHello(1, 7, {"--x": "1"}))
    poller = Poller()
    poller.watch(leader.reports)
    poller.watch(leader.connections)
    assert poller.wait(_LIMIT)
    received = None
    while received is None:
        received = leader.reports.receive_with_connection()
    hello, connection = received
    assert hello == HostHello(1, 7, {"--x": "1"})
    heard: list[object] = []

    def repeat() -> bool:
        leader.orders.send(HostsEnd(1, 0, "x"))
        heard.extend(follower.orders.receive_some())
        return bool(heard)

    until(repeat, "an order")
    assert heard[0] == HostsEnd(1, 0, "x")
    follower.close()
    ended: list[int] = []
    until(lambda: ended.extend(leader.connections.ended()) or connection in ended, "the follower's end")  # type: ignore[func-returns-value]
    follower = FollowerPipes(config(port, secret), "127.0.0.1")
    until(lambda: leader.orders.send(HostsEnd(1, 0, "x")) > 0 and follower.orders.receive() is not None, "another follower")
    leader.close()
    until(lambda: bool(follower.connections.ended()), "the leader's end")
    follower.close()


@pytest.mark.parametrize(("ours", "theirs"), [(_TOKEN, "another token, as long as that"), (_TOKEN, ""), ("", _TOKEN)])
def test_who_has_another_token_is_not_let_in(ours: str, theirs: str) -> None:
    port = ports_in_a_row(2)
    leader, barred = LeaderPipes(config(port, ours), _LOCAL), 0
    while barred < 3 or not leader.connections.wrong_token:
        follower = FollowerPipes(config(port, theirs), "127.0.0.1")
        with contextlib.suppress(ChannelFullError):  # it may have been turned away by now
            follower.reports.send(HostHello(1, 7, {}))

        def noticed(follower: FollowerPipes = follower) -> bool:
            leader.connections.ended()
            follower.connections.ended()
            return follower.connections.wrong_token or follower.connections.refused > 2

        until(noticed, "that the tokens are not the same")
        follower.close()
        barred += 1
        assert leader.reports.receive() is None
    leader.close()


def test_only_the_hosts_get_in() -> None:
    port = ports_in_a_row(2)
    leader, stranger = LeaderPipes(config(port), ("127.0.0.1", "192.0.2.1")), FollowerPipes(config(port), "127.0.0.1")
    assert leader.reports.receive() is None
    stranger.close()
    leader.close()
    leader = LeaderPipes(config(port), ("127.0.0.2", "192.0.2.1"))  # its own address is let in, and this one is another
    stranger = FollowerPipes(config(port), "127.0.0.2")
    stranger.reports.send(HostHello(1, 7, {}))

    def refused() -> bool:
        stranger.connections.ended()
        return stranger.connections.refused > 2

    until(refused, "the end of its connections")
    assert leader.reports.receive() is None
    stranger.close()
    leader.close()


def test_addresses_that_cannot_be_had() -> None:
    port = ports_in_a_row(2)
    with socket.create_server(("127.0.0.1", port)), pytest.raises(AddressError, match=rf"rank 0 cannot have 127.0.0.1:{port} and"):
        LeaderPipes(config(port), _LOCAL)
    with pytest.raises(AddressError, match=r"is 127.0.0.1 this host, and does no other"):
        LeaderPipes(config(port), ("192.0.2.1", "127.0.0.1"))


def test_names_of_hosts() -> None:
    assert resolve("127.0.0.1") == "127.0.0.1"
    assert resolve("::1") == "::1"
    with pytest.raises(ConfigError, match=r"--hosts: no-such-host.invalid: no known host"):
        resolve("no-such-host.invalid")
    assert resolve_all(("127.0.0.1", "no-such-host.invalid")) == (("127.0.0.1",), ["no-such-host.invalid"])
    assert coordinator_address(config(8000), "10.0.0.1") == "10.0.0.1:8002"
    assert coordinator_address(config(8000), "fd00::1") == "[fd00::1]:8002"
