"""Which Host headers an engine answers to."""

import httpx
import pytest

from frontend.server.api.errors import ApiError
from frontend.server.api.hosts import Hosts
from frontend.server.host_names import is_local, parse_host
from tests.frontend.server.api.running import RunningEngine, another_front


def answers(hosts: Hosts, header: str | None) -> bool:
    try:
        hosts.check(None if header is None else header.encode("latin-1"))
    except ApiError as error:
        assert (error.status, error.code) == (421, "host_not_allowed")
        assert "--allowed-hosts" in error.message
        return False
    return True


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.1.2.3"])
def test_an_engine_on_loopback_answers_to_local_names_only(host: str) -> None:
    hosts = Hosts(host)
    local = [
        "localhost",
        "localhost:8000",
        "LOCALHOST:1",
        "127.0.0.1:9000",
        "127.8.8.8",
        "[::1]:8000",
        "[::1]",
        "a.localhost",
        None,
    ]
    local += ["localhost.", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]:80"]
    assert [header for header in local if not answers(hosts, header)] == []
    foreign = ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "0.0.0.0:8000", "10.0.0.1"]
    foreign += [
        "",
        ":8000",
        "[::1",
        "::1]:80",
        "[evil]",
        "a@localhost",
        "localhost/evil",
        "localhost:8000:9000",
        "[fe80::1]",
        "127.1",
    ]
    foreign += ["ä", "notlocalhost", "x" * 60_000, ":" * 60_000, "[" + ":" * 60_000 + "]"]
    for _ in range(2):  # what was looked at once is remembered
        assert [header for header in foreign if answers(hosts, header)] == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "engine.example.com"])
def test_one_on_the_network_answers_to_all(host: str) -> None:
    assert answers(Hosts(host), "whatever.example:80")


def test_its_own_name_is_answered_to() -> None:
    assert answers(Hosts("::1", ("engine.example.com",)), "[::1]")
    assert answers(Hosts("10.0.0.5", ("engine.example.com",)), "10.0.0.5:8000")


def test_what_the_operator_allows() -> None:
    hosts = Hosts("127.0.0.1", ("engine.example.com", "10.0.0.5:8080", "[2001:db8::1]:8000", "*.lan", "*.corp:8443"))
    allowed = ["engine.example.com", "Engine.Example.Com:1234", "10.0.0.5:8080", "[2001:DB8:0::1]:8000", "a.lan", "a.b.lan:5"]
    allowed += ["x.corp:8443", "localhost:8000"]
    assert [header for header in allowed if not answers(hosts, header)] == []
    refused = ["10.0.0.5", "10.0.0.5:80", "[2001:db8::1]:80", "lan", "evillan", "x.corp", "x.corp:80", "other.example.com"]
    assert [header for header in refused if answers(hosts, header)] == []
    assert not answers(Hosts("0.0.0.0", ("engine.example.com",)), "other.example.com"), "who names some means these"
    assert answers(Hosts("127.0.0.1", ("*",)), "whatever.example")


def test_what_is_remembered_is_bounded() -> None:
    hosts = Hosts("127.0.0.1")
    for port in range(5000):
        assert answers(hosts, f"localhost:{port}")
    assert len(hosts._good) <= 256


def test_names_and_addresses() -> None:
    assert parse_host("Example.COM.:80") == ("example.com", "80")
    assert parse_host("::1") == parse_host("[::1]") == ("::1", "")
    assert not is_local("localhost.example")


def test_over_http(running: RunningEngine, http: httpx.Client) -> None:
    answer = http.get("/v1/models", headers={"host": "evil.example"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (421, "host_not_allowed")
    assert http.get("/health", headers={"host": "evil.example"}).status_code == 421
    with another_front(running, allowed_hosts=("engine.example",)) as other:
        assert other.get("/v1/models", headers={"host": "engine.example:443"}).status_code == 200
