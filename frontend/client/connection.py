"""The synchronous client's socket: sends and receives when somebody waits, and never blocks on one direction alone."""

import select
import socket
from pathlib import Path

from frontend.client.discovery import closed, refused, silent
from frontend.client.session import Session
from protocol.clock import now

_READ_BYTES = 1 << 18


class Connection:
    """Moves bytes between a session and the engine's socket."""

    def __init__(self, path: Path, session: Session, timeout: float) -> None:
        """Connects and says hello. Raises EngineUnavailable, or ProtocolError when the engine is of another version."""
        self._path = path
        self._session = session
        self._unsent = b""
        self._poll = select.poll()
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._open(timeout)
        except BaseException:
            self._socket.close()
            raise

    def turn(self, deadline: float | None) -> bool:
        """Waits until bytes moved in any direction, and moves them. False when `deadline` came first; None waits for ever."""
        if not self._unsent:
            self._unsent = self._session.take_outgoing()
        self._poll.modify(self._socket, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        ready = self._poll.poll(None if deadline is None else max(0.0, deadline - now()) * 1e3)
        if not ready:
            return False
        try:
            ((_, events),) = ready
            if events & ~select.POLLOUT:  # hang-ups and errors show when read
                self._receive()
            if events & select.POLLOUT:
                self._send()
        except OSError:
            self._session.lose(closed(self._path))
        return True

    def flush(self) -> None:
        """Sends what the socket takes at once; the rest goes when somebody waits."""
        if not self._unsent:
            self._unsent = self._session.take_outgoing()
        try:
            self._send()
        except OSError:
            self._session.lose(closed(self._path))

    def close(self) -> None:
        """Hangs up."""
        self._socket.close()

    def _open(self, timeout: float) -> None:
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(str(self._path))
        except TimeoutError as error:
            raise silent(self._path, timeout) from error
        except OSError as error:
            raise refused(self._path, error) from error
        self._socket.setblocking(False)
        self._poll.register(self._socket)
        deadline = now() + timeout
        while self._session.welcome is None:
            if self._session.lost is not None:
                raise self._session.lost
            if not self.turn(deadline):
                raise silent(self._path, timeout)

    def _receive(self) -> None:
        data = self._socket.recv(_READ_BYTES)
        if data:
            self._session.feed(data)
        else:
            self._session.lose(closed(self._path))

    def _send(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :] or self._session.take_outgoing()
        except BlockingIOError:
            pass
