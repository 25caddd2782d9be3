"""Whether an engine can have its addresses, asked before anything starts: each is taken for a moment, and let go again."""

import os
from collections.abc import Mapping
from pathlib import Path

from frontend.server.bind import bind_http
from frontend.server.ipc.listener import ListeningSocket
from protocol.endpoints import LONGEST_SOCKET_PATH, default_client_socket
from protocol.errors import ConfigError


def check_port(host: str, port: int) -> None:
    """Raises ConfigError or AddressError as `bind_http` does."""
    bind_http(host, port).close()


def check_socket(given: str | None, environ: Mapping[str, str]) -> str:
    """The absolute path of the clients' socket; `given`: by --ipc.

    Raises ConfigError for a path that cannot be one, AddressError when an engine listens there.
    """
    try:
        path = Path(os.path.expanduser(given.removeprefix("unix://"))).absolute() if given else default_client_socket().absolute()
        name = f"--ipc {path}" if given else f"the clients' socket {path}{_source(environ)}"
        if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
            raise ConfigError(f"{name}: a socket's path has at most {LONGEST_SOCKET_PATH} bytes: choose a shorter one with --ipc")
        if not path.parent.is_dir():
            raise ConfigError(f"{name}: the directory {path.parent} does not exist: make it, or choose another path with --ipc")
        if path.exists() and not path.is_socket():
            raise ConfigError(f"{name}: there is something else at this path: choose another one with --ipc")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise ConfigError(f"{name}: the directory {path.parent} is not writable: choose another one with --ipc")
    except OSError as error:
        raise ConfigError(f"--ipc {given or ''}: {error.filename or ''}: {error.strerror}") from error
    ListeningSocket(path).close()
    return str(path)


def _source(environ: Mapping[str, str]) -> str:
    """Where the path comes from that nobody gave."""
    found = next((name for name in ("ENGINE_SOCKET", "XDG_RUNTIME_DIR") if environ.get(name)), None)
    return f" (from {found})" if found else ""
