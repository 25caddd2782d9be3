"""Takes the HTTP port: for as long as the engine runs, or, in the launcher, for a moment, to see whether it can be had."""

import errno
import socket

from protocol.errors import AddressError, ConfigError, EngineError


def bind_http(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Binds, and listens not yet. `shared`: others of this user may bind it so too; the kernel then spreads the connections.

    Raises ConfigError for a host that is none, AddressError when the port cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError) as error:  # a name of too long a label is a UnicodeError
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"--host {host}: no known host ({reason}); an address of this machine is wanted, or 0.0.0.0") from error
    try:
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # else asyncio leaves Nagle on: 40 ms
    except OSError as error:
        raise explain(error, host, port) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise explain(error, host, port) from error
    return listener


def explain(error: OSError, host: str, port: int) -> EngineError:
    """Why the port cannot be had, and what to do."""
    match error.errno:
        case errno.EADDRINUSE:
            return AddressError(f"port {port} on {host} is taken: choose another with --port, or 0 for any free one")
        case errno.EACCES | errno.EPERM:
            return AddressError(f"port {port} on {host} is not permitted to this user: choose one from 1024 on with --port")
        case errno.EADDRNOTAVAIL:
            return AddressError(f"{host} is no address of this machine: choose one of its own with --host, or 0.0.0.0 for all")
    return AddressError(f"cannot listen on {host} port {port}: {error.strerror}; choose others with --host and --port")
