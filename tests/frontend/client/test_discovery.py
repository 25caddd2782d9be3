"""Which socket a client tries."""

from pathlib import Path

import pytest

from frontend.client.discovery import find_socket
from frontend.errors import InvalidRequest


def test_the_argument_comes_first_then_the_environment_then_the_runtime_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("ENGINE_SOCKET", raising=False)
    (tmp_path / "twodeep.sock").touch()
    assert find_socket(None) == tmp_path / "twodeep.sock"
    monkeypatch.setenv("ENGINE_SOCKET", "unix:///named.sock")
    assert find_socket(None) == Path("/named.sock")
    assert (
        find_socket("/given.sock") == find_socket("unix:///given.sock") == find_socket(Path("/given.sock")) == Path("/given.sock")
    )


@pytest.mark.parametrize("address", ["http://127.0.0.1:8000", "tcp://x", "/" + "x" * 200])
def test_what_is_no_socket(address: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        find_socket(address)
    assert refused.value.param == "socket"
