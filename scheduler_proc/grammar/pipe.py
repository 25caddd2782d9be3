"""Frames on a stream socket between two processes of one program: a length, then that many bytes. Neither end ever waits."""

import socket
import struct

_LENGTH = struct.Struct("<I")
_PIECE = 1 << 18  # bytes read at a time


class Pipe:
    """One end."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._unsent = bytearray()
        self._unread = bytearray()
        self.closed = False  # the other end is gone

    def fileno(self) -> int:
        """For pollers: readable when a frame, or a part of one, is here."""
        return self._socket.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether something waits for the other end to make room."""
        return bool(self._unsent)

    def send(self, frame: bytes) -> None:
        """Sends a frame, now or with later calls of `flush`."""
        self._unsent += _LENGTH.pack(len(frame))
        self._unsent += frame
        self.flush()

    def flush(self) -> None:
        """Sends what waits, as far as there is room."""
        try:
            while self._unsent:
                sent = self._socket.send(self._unsent)
                del self._unsent[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True

    def receive(self) -> list[bytes]:
        """The frames that are here by now."""
        try:
            while not self.closed:
                piece = self._socket.recv(_PIECE)
                self._unread += piece
                self.closed = not piece
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True
        frames = []
        while len(self._unread) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._unread)[0]
            if len(self._unread) < end:
                break
            frames.append(bytes(self._unread[_LENGTH.size : end]))
            del self._unread[:end]
        return frames

    def close(self) -> None:
        """Closes this end."""
        self._socket.close()
