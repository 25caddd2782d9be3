"""Which socket a client tries."""

import os
import tempfile
from pathlib import Path

import pytest

from frontend.client import discovery
from frontend.client.discovery import find_socket
from frontend.errors import EngineUnavailable, InvalidRequest


def test_the_argument_comes_first_then_the_environment_then_the_runtime_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("ENGINE_SOCKET", raising=False)
    (tmp_path / "twodeep.sock").touch()
    assert find_socket(None) == tmp_path / "twodeep.sock"
    monkeypatch.setenv("ENGINE_SOCKET", "")
    assert find_socket(None) == tmp_path / "twodeep.sock"
    monkeypatch.setenv("ENGINE_SOCKET", "unix:///named.sock")
    assert find_socket(None) == Path("/named.sock")
    assert (
        find_socket("/given.sock") == find_socket("unix:///given.sock") == find_socket(Path("/given.sock")) == Path("/given.sock")
    )


def test_the_only_service_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "user"))
    monkeypatch.setenv("ENGINE_SOCKET", "")
    monkeypatch.setattr(discovery, "_SERVICES", tmp_path / "engine")
    own = tmp_path / "user" / "twodeep.sock"
    assert find_socket(None) == own
    for name in ("one", "two"):
        (tmp_path / "engine" / name).mkdir(parents=True)
    one = tmp_path / "engine" / "one" / "api.sock"
    one.touch()
    assert find_socket(None) == one
    (tmp_path / "engine" / "two" / "api.sock").touch()
    assert find_socket(None) == own, "of two, one has to be named"


def test_what_another_user_put_into_the_shared_directory_is_not_talked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("ENGINE_SOCKET", "")
    monkeypatch.setattr(os, "access", lambda *_: False)  # no /run/engine of ours
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine, link = tmp_path / "mine.sock", tmp_path / f"twodeep-{os.getuid()}.sock"
    mine.touch()
    link.symlink_to(mine)
    assert find_socket(None) == link
    if os.geteuid() == 0:
        os.chown(link, 4242, 4242, follow_symlinks=False)
        with pytest.raises(EngineUnavailable, match="another user"):
            find_socket(None)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8000", "tcp://x", "/" + "x" * 200])
def test_what_is_no_socket(address: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        find_socket(address)
    assert refused.value.param == "socket"
