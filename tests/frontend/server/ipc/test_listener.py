"""The socket's file: private, never stolen from a live engine, never left behind."""

import os
import socket
from pathlib import Path

import pytest

from frontend.server.ipc.listener import ListeningSocket, may_connect, peer_uid
from protocol.errors import AddressError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "api.sock"


def test_the_file_is_private_from_the_start_and_gone_at_the_end(path: Path) -> None:
    listener = ListeningSocket(path)
    assert path.stat().st_mode & 0o777 == 0o600
    listener.close()
    assert not path.exists()


def test_clients_may_connect_before_anyone_accepts(path: Path) -> None:
    listener = ListeningSocket(path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        accepted, _ = listener.socket.accept()
        with accepted:
            assert peer_uid(accepted) == os.getuid()
            assert may_connect(accepted)
    listener.close()


def test_a_stale_socket_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    listener = ListeningSocket(path)
    listener.close()


def test_a_live_socket_is_not(path: Path) -> None:
    first = ListeningSocket(path)
    with pytest.raises(AddressError, match=r"api\.sock is taken.*--ipc"):
        ListeningSocket(path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    first.close()


def test_what_is_no_socket_is_left_alone(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(AddressError, match="no socket"):
        ListeningSocket(path)
    assert path.read_text() == "precious"


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(AddressError, match="nowhere"):
        ListeningSocket(tmp_path / "nowhere" / "api.sock")


def test_closing_leaves_the_socket_that_another_engine_put_in_its_place(path: Path) -> None:
    first = ListeningSocket(path)
    path.unlink()
    second = ListeningSocket(path)
    first.close()
    assert path.exists()
    second.close()
    assert not path.exists()
