"""The blocking client's socket: it is read and written only while somebody waits, and then for all requests of the connection."""

import contextlib
import select
import socket
from collections.abc import Callable
from typing import TypeVar

from frontend.client.awaited import Awaited
from frontend.client.session import RETRY_SECONDS, Session
from protocol.clock import now

Answer = TypeVar("Answer")

_READ_BYTES = 1 << 18


class BlockingPipe:
    """Connects a session, and waits for what it awaits."""

    def __init__(self, session: Session, timeout: float | None) -> None:
        """Waits until the engine is ready. Raises EngineUnavailable when none is there, DeadlineExceeded when it takes too long."""
        self._session = session
        self._socket = socket.socket(socket.AF_UNIX)
        self._unsent = memoryview(b"")
        self._busy = False
        self._give_up: float | None = None  # when an engine that is gone is waited for no longer
        deadline = _deadline(timeout)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(str(session.path))
            # Non-blocking from here on: a timeout set on the socket could be changed by a stream that is collected meanwhile.
            self._socket.setblocking(False)
            if not self._exchange(lambda: session.greeting.ready, deadline):
                raise TimeoutError
            session.greeting.result()
        except OSError as error:
            self.close()
            raise session.cannot_connect(error, timeout) from error
        except BaseException:
            self.close()
            raise

    def wait(self, awaited: Awaited[Answer], timeout: float | None) -> Answer:
        """The answer. Raises what `awaited` fails with, or what it says when it is late."""
        if not self._exchange(lambda: awaited.ready, _deadline(timeout)):
            assert timeout is not None
            late = awaited.late(timeout)
            self.send()
            raise late
        return awaited.result()

    def finish(self, awaited: Awaited[Answer], timeout: float | None) -> Answer:
        """The answer of what nobody else knows of: it is closed, however this ends."""
        try:
            return self.wait(awaited, timeout)
        finally:
            awaited.close()
            self.send()

    def look(self, awaited: Awaited[Answer]) -> bool:
        """Whether the answer is here. Does not wait."""
        return self._exchange(lambda: awaited.ready, now())

    def flush(self) -> None:
        """Sends everything that waits to be sent."""
        self._exchange(lambda: not self._unsent, None)

    def send(self) -> None:
        """Sends what can be sent without waiting; the rest goes when somebody waits. Streams may be collected, and then cancelled,
        at any point: also while something is being sent."""
        if not self._busy:
            self._exchange(lambda: True, None)

    def close(self) -> None:
        """Hangs up. Idempotent."""
        self._session.close()
        self._socket.close()

    def _exchange(self, until: Callable[[], bool], deadline: float | None) -> bool:
        """Sends and reads until something is so; False when it is not by the deadline."""
        self._busy = True
        try:
            while True:
                self._send()
                if until() or self._session.lost is not None:
                    return True
                # What the engine says is taken in also while it is to be sent something: it may wait for that before it reads on.
                data = self._read()
                if data:
                    self._session.feed(data)
                    self._give_up = None if self._session.greeted else self._give_up
                elif data is None:
                    if not self._poll(deadline):
                        return False
                elif self._session.broke() and not self._reconnect(deadline):
                    return False
        finally:
            self._busy = False

    def _send(self) -> None:
        if self._session.lost is not None:
            return
        try:
            while self._unsent or (data := self._session.take_outgoing()):
                self._unsent = self._unsent or memoryview(data)
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:  # the engine hung up; what it said before tells why, and is read first
            self._unsent = memoryview(b"")

    def _reconnect(self, deadline: float | None) -> bool:
        """Connects to an engine that was gone, as soon as it is there again; False when it is not by the deadline."""
        self._give_up = self._give_up or now() + self._session.reconnect
        while True:
            select.select([], [], [], RETRY_SECONDS)
            self._socket.close()
            self._socket, self._unsent = socket.socket(socket.AF_UNIX), memoryview(b"")
            with contextlib.suppress(OSError):
                self._socket.settimeout(1.0)
                self._socket.connect(str(self._session.path))
                self._socket.setblocking(False)
                return True
            if now() > self._give_up:
                self._session.give_up()
                return True
            if deadline is not None and now() > deadline:
                return False

    def _read(self) -> bytes | None:
        try:
            return self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:  # reset: gone without a word
            return b""

    def _poll(self, deadline: float | None) -> bool:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        return bool(poll.poll(None if deadline is None else max(0.0, deadline - now()) * 1e3))


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else now() + timeout
