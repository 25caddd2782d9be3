"""The listening Unix socket for Python clients: private, and in place of a dead engine's but never of a live one's."""

import contextlib
import os
import socket
import stat
import struct
from pathlib import Path

from protocol.errors import AddressError

_BACKLOG = 1024  # connections that wait to be accepted, also while the engine still loads
_PROBE_SECONDS = 1.0  # a live engine's kernel accepts at once, however busy the engine is
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred


class ListeningSocket:
    """Bound and listening from construction to `close`, which removes the file."""

    def __init__(self, path: Path) -> None:
        """Raises AddressError when the path is taken or cannot be used."""
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            _clear(path)
            # The mode has to be right from the first moment, so it comes from the mask and not from a chmod.
            mask = os.umask(0o177)
            try:
                self.socket.bind(str(path))
            finally:
                os.umask(mask)
            self._inode = path.stat().st_ino
            self.socket.listen(_BACKLOG)
            self.socket.setblocking(False)
        except OSError as error:
            self.socket.close()
            raise AddressError(f"cannot listen on the socket {path}: {error.strerror}; choose another with --ipc") from error
        except AddressError:
            self.socket.close()
            raise

    def close(self) -> None:
        """Stops listening. The file goes unless another engine has put its own in place."""
        self.socket.close()
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()


def may_connect(connection: socket.socket) -> bool:
    """Whether the peer is this user or root. The file's mode says the same; this holds where a directory forgot it."""
    return peer_uid(connection) in (0, os.getuid())


def peer_uid(connection: socket.socket) -> int:
    """User id of the process at the other end."""
    _, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(uid)


def _clear(path: Path) -> None:
    """Removes a socket at which nobody listens."""
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise AddressError(f"{path} exists and is no socket; choose another path with --ipc")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except FileNotFoundError:
            return
        except PermissionError as error:
            raise AddressError(f"the socket {path} belongs to another user; choose another with --ipc") from error
        except (TimeoutError, BlockingIOError) as error:
            raise AddressError(
                f"the socket {path} is taken by an engine that does not answer; choose another with --ipc"
            ) from error
        else:
            raise AddressError(f"the socket {path} is taken: an engine listens there; choose another with --ipc")
