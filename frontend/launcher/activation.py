"""Sockets that the service manager listens on and hands over (sd_listen_fds(3)): they outlive the engine, so that clients who come
while it restarts wait, and are not refused.
"""

import os
import socket
from collections.abc import Mapping

from protocol.errors import ConfigError

_FIRST = 3  # the number of the first descriptor that is handed over


def inherited_listener(environ: Mapping[str, str]) -> socket.socket | None:
    """The listening TCP socket that was handed to this process; None: there is none. Call it once.

    Raises ConfigError when there are several, or when it is of another kind.
    """
    if environ.get("LISTEN_PID") != str(os.getpid()):  # none, or meant for the process that started this one
        return None
    count = environ.get("LISTEN_FDS", "")
    if count in ("", "0"):
        return None
    if count != "1":
        raise ConfigError(f"LISTEN_FDS={count[:20]}: one listening socket is wanted: give engine@.socket one ListenStream")
    try:
        listener = socket.socket(fileno=_FIRST)
    except OSError as error:
        raise ConfigError(f"LISTEN_FDS=1, but descriptor {_FIRST} is no socket ({error.strerror}): unset it") from error
    listener.set_inheritable(False)
    listens = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if listener.family not in (socket.AF_INET, socket.AF_INET6) or listener.type != socket.SOCK_STREAM or not listens:
        listener.detach()
        raise ConfigError(
            f"the socket that was handed over (descriptor {_FIRST}) is none that listens for TCP: "
            "give engine@.socket a ListenStream of address and port"
        )
    return listener
