"""Ports and sockets that an engine cannot have are named before anything starts; those that it can are as they were."""

import socket
from pathlib import Path

import pytest

from frontend.launcher.addresses import check_port, check_socket
from frontend.server.ipc.listener import ListeningSocket
from protocol.errors import AddressError, ConfigError


def test_a_free_address_is_left_free(tmp_path: Path) -> None:
    check_port("127.0.0.1", 0)
    for given in (str(tmp_path / "api.sock"), f"unix://{tmp_path}/api.sock"):
        assert check_socket(given, {}) == str(tmp_path / "api.sock")
        assert list(tmp_path.iterdir()) == []


def test_a_dead_engines_socket_is_no_obstacle(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "api.sock"))
    check_socket(str(tmp_path / "api.sock"), {})


def test_an_engine_that_answers_keeps_its_socket(tmp_path: Path) -> None:
    other = ListeningSocket(tmp_path / "api.sock")
    with pytest.raises(AddressError, match=rf"the socket {tmp_path}/api\.sock is taken: an engine listens there"):
        check_socket(str(tmp_path / "api.sock"), {})
    assert (tmp_path / "api.sock").is_socket()
    other.close()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("XDG_RUNTIME_DIR", "/no/such", r"/no/such/twodeep\.sock \(from XDG_RUNTIME_DIR\): the directory /no/such does"),
        ("ENGINE_SOCKET", "/no/such/x", r"socket /no/such/x \(from ENGINE_SOCKET\): the directory /no/such does not exist"),
        ("ENGINE_SOCKET", "/etc", r"/etc \(from ENGINE_SOCKET\): there is something else"),
    ],
)  # fmt: skip
def test_a_path_that_nobody_gave_says_where_it_comes_from(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.delenv("ENGINE_SOCKET", raising=False)
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=message):
        check_socket(None, {variable: value})


def test_a_working_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigError, match=r"--ipc api\.sock: .*No such file or directory"):
        check_socket("api.sock", {})
