"""Where the engine's socket is, and what to say when nobody answers there."""

import os
import tempfile
from pathlib import Path

from frontend.errors import EngineUnavailable, InvalidRequest
from protocol.endpoints import LONGEST_SOCKET_PATH, default_client_socket

_SERVICES = Path("/run/engine")  # where the service's engines listen, each in a directory that is not ours to write


def find_socket(given: str | os.PathLike[str] | None) -> Path:
    """The argument (a path, or a unix:// address), then $ENGINE_SOCKET, then the first of the default places with a socket.

    Raises InvalidRequest on an address of another kind, EngineUnavailable on a socket in the shared temporary directory that
    another user has put there.
    """
    if given is not None:
        text = os.fspath(given)
        if "://" in text and not text.startswith("unix://"):
            raise InvalidRequest(f"{text}: the client takes a path or unix:///path; for HTTP there is the openai package", "socket")
        return _checked(Path(text.removeprefix("unix://")).expanduser())
    path = default_client_socket()
    if os.environ.get("ENGINE_SOCKET"):
        return _checked(path.expanduser())
    if not path.exists() and (service := _only_service()) is not None:
        return service
    if path.parent == Path(tempfile.gettempdir()) and os.path.lexists(path) and path.lstat().st_uid != os.getuid():
        raise EngineUnavailable(f"the socket {path} belongs to another user: name the engine's own as the argument")
    return _checked(path)


def _only_service() -> Path | None:
    """The socket of the engine that runs as a service; None if there is none, or several to choose from."""
    found = [socket for socket in (_SERVICES / "api.sock", *_SERVICES.glob("*/api.sock")) if os.access(socket, os.W_OK)]
    return found[0] if len(found) == 1 else None


def _checked(path: Path) -> Path:
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        raise InvalidRequest(f"{path}: a socket's path has at most {LONGEST_SOCKET_PATH} bytes", "socket")
    return path


def cannot_connect(path: Path, error: OSError) -> EngineUnavailable:
    """Names the socket and the way out."""
    return EngineUnavailable(
        f"no engine answers at {path} ({error.strerror}): start one with `engine-launch --ipc {path}`, "
        "or name its socket as the argument or in ENGINE_SOCKET"
    )
