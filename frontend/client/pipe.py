"""The blocking client's socket: it is read and written only while somebody waits, and then for all requests of the connection."""

import select
import socket
from collections.abc import Callable
from pathlib import Path

from frontend.client.discovery import cannot_connect
from frontend.client.outputs import Assembly
from frontend.client.session import Session
from frontend.errors import DeadlineExceeded, EngineUnavailable, RequestLost
from protocol.clock import now

_READ_BYTES = 1 << 18


class Pipe:
    """A session and its socket, greeted by the engine."""

    def __init__(self, path: Path, timeout: float) -> None:
        """Raises EngineUnavailable when no engine is there, DeadlineExceeded when it does not get ready in time."""
        self.path = path
        self.session = Session()
        self._flushing = False
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(str(path))
            # Non-blocking from here on: a timeout set on the socket could be changed by a stream that is collected meanwhile.
            self._socket.setblocking(False)
            if not self.wait(lambda: self.session.welcome is not None, timeout):
                raise DeadlineExceeded(f"the engine at {path} was not ready within {timeout:g} s")
            if self.session.welcome is None and isinstance(self.session.lost, RequestLost):
                raise EngineUnavailable(f"the engine at {path} ended before it was ready")
            if self.session.lost is not None:
                raise self.session.lost
        except OSError as error:
            self._socket.close()
            raise cannot_connect(path, error) from error
        except BaseException:
            self._socket.close()
            raise

    def wait(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        """Reads until the condition holds or the connection is lost; False after `timeout` seconds, 0 looks once."""
        deadline = None if timeout is None else now() + timeout
        self.flush()
        while not condition() and self.session.lost is None:
            data = self._read()
            if data is not None:
                self.session.feed(data)
            elif not self._poll(select.POLLIN, deadline):
                return False
        return True

    def flush(self) -> None:
        """Sends what waits to be sent. The engine always reads, so this does not take long."""
        if self._flushing:  # a stream was collected, and its request cancelled, in the middle of another flush
            return
        self._flushing = True
        try:
            while data := memoryview(self.session.take_outgoing()):
                while data:
                    try:
                        data = data[self._socket.send(data) :]
                    except BlockingIOError:
                        self._poll(select.POLLOUT, None)
        except OSError:
            self._lose()
        finally:
            self._flushing = False

    def cancel(self, assembly: Assembly) -> None:
        """Aborts a request. Without effect on one that has ended."""
        self.session.cancel(assembly)
        self.flush()

    def close(self) -> None:
        """Hangs up. Idempotent."""
        self.session.lose(RequestLost("the client is closed"))
        self._socket.close()

    def _read(self) -> bytes | None:
        try:
            return self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:  # reset: gone without a word
            return b""

    def _poll(self, events: int, deadline: float | None) -> bool:
        poll = select.poll()
        poll.register(self._socket, events)
        return bool(poll.poll(None if deadline is None else max(0.0, deadline - now()) * 1e3))

    def _lose(self) -> None:
        """The engine hung up; what it said before tells why."""
        while self.session.lost is None:
            self.session.feed(self._read() or b"")
