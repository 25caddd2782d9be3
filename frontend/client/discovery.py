"""Where the engine's socket is, and what to say when nobody answers there."""

import os
from pathlib import Path

from frontend.errors import EngineUnavailable
from protocol.endpoints import default_client_socket

_SERVICE_SOCKET = Path("/run/engine/api.sock")


def find_socket(named: str | os.PathLike[str] | None) -> Path:
    """The path that was named, as `unix:///path` or plainly; else $ENGINE_SOCKET, the user's runtime directory, a service's."""
    if named is not None:
        return Path(os.fspath(named).removeprefix("unix://")).expanduser()
    path = default_client_socket()
    # An engine that runs as a service listens where other users may connect but not write.
    if "ENGINE_SOCKET" not in os.environ and not path.exists() and _SERVICE_SOCKET.exists():
        return _SERVICE_SOCKET
    return path


def refused(path: Path, error: OSError) -> EngineUnavailable:
    """What a failed connection means."""
    if isinstance(error, PermissionError):
        return EngineUnavailable(f"the socket {path} belongs to another user, who alone may use that engine")
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return EngineUnavailable(f"no engine listens at {path}: start one with `engine-launch --ipc {path}`")
    return EngineUnavailable(f"cannot connect to the engine at {path}: {error.strerror or error}")


def silent(path: Path, seconds: float) -> EngineUnavailable:
    """An engine that took the connection and says nothing: it is still starting, or stuck."""
    return EngineUnavailable(f"the engine at {path} has not answered for {seconds:g} s: it may still be starting")
