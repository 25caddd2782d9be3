"""One request and its answer: the callables that ASGI hands to the application."""

import asyncio
import functools
import logging
from collections.abc import Iterable
from http import HTTPStatus
from typing import Protocol

from starlette.types import ASGIApp, Message

from frontend.server.api.errors import ApiError
from frontend.server.http.occasional import OccasionalLog
from frontend.server.http.parser import Head

_FAULTS = OccasionalLog(logging.getLogger(__name__), logging.ERROR)

_PROTOCOL = b"HTTP/1.1 "  # how every answer begins
_MOST_PROBES = len(_PROTOCOL)

# An extension of ASGI's scope: `send` for the pieces of a body that has begun, past all that stands around the application, which
# looks at nothing but the head.
STREAM = "http.response.stream"

Headers = Iterable[tuple[bytes, bytes]]


class Peer(Protocol):
    """The connection, as an exchange sees it."""

    paused: bool  # the client does not keep up with its answer

    def write(self, data: bytes) -> None:
        """Sends bytes; without effect when the connection is gone."""

    async def writable(self) -> None:
        """Returns when the client has read enough, or is gone."""

    def date(self) -> bytes:
        """For the header of that name."""

    def is_last(self) -> bool:
        """The connection takes no further request."""

    async def turn(self, size: int) -> None:
        """Returns when the application may work on a body of that size."""

    def end_turn(self, size: int) -> None:
        """It does no more."""

    def took_body(self) -> None:
        """The application has taken the body."""

    def answered(self) -> None:
        """The answer is complete."""

    def abort(self) -> None:
        """Cuts the connection."""


class Exchange:
    """`receive` and `send` of one request. The connection feeds it the body, and tells it when the client is gone."""

    def __init__(self, peer: Peer, head: Head) -> None:
        self.head = head
        self.keep_alive = head.keep_alive  # another request may follow the answer
        self._peer = peer
        self._body = bytearray()
        self._whole = asyncio.Event()  # the request is here, or nothing more of it comes
        self._over = asyncio.Event()  # the answer is complete, or nobody waits for it
        self._taken = self._started = self._chunked = self._bodiless = False
        self._unsent = b""  # the head, for a moment
        self._in_work = 0  # bytes of a body that has its turn
        self._ahead = 0  # bytes of _PROTOCOL that a probe has sent already
        self._probes = 0

    async def run(self, app: ASGIApp) -> None:
        """Lets the application answer. Whatever it does, there is an answer, or the connection is cut."""
        self.head.scope.setdefault("extensions", {})[STREAM] = self.send
        try:
            await app(self.head.scope, self.receive, self.send)
        except Exception as error:  # noqa: BLE001 - a fault of ours, which concerns this request
            scope, name = self.head.scope, self.head.request_id.decode()
            _FAULTS.say(f"{scope['method']} {scope['path']!r} failed (request id {name})", error)
        finally:
            self._end_turn()
        if not self._over.is_set():
            self.refuse(ApiError(500, "the engine failed on this request", code="internal_error"))

    # for the connection

    @property
    def held(self) -> int:
        """Bytes of body that the application has not taken."""
        return len(self._body)

    def feed(self, body: bytes) -> None:
        """More of the body."""
        self._body += body

    def feed_end(self) -> None:
        """The body is complete."""
        self._whole.set()

    def refuse(self, error: ApiError) -> None:
        """Answers in place of the application, and for the last time on this connection. Where an answer has begun, it is cut."""
        if self._over.is_set():
            return
        if self._started:
            self.lose()
            self._peer.abort()
            return
        self.keep_alive = False
        body = error.body()
        self._start(error.status, _error_fields(error, body))
        self._write(b"" if self._bodiless else body)
        self._end()

    def lose(self) -> None:
        """The client is gone, or nothing can be sent to it."""
        self._body.clear()
        self._whole.set()
        self._over.set()

    def probe(self) -> bool:
        """Sends the next byte that any answer would begin with, or go on with; False: there is none.

        A client that has sent everything may have closed its side only, and wait; or be gone. TCP does not tell until something is
        sent: one that is gone then resets the connection. An answer begins with HTTP/1.1, and the size of a chunk may begin with
        zeros (RFC 9112, 7.1), so no client sees a difference.
        """
        if self._over.is_set() or self._probes >= _MOST_PROBES:
            return False
        self._probes += 1
        if not self._started:
            self._peer.write(_PROTOCOL[self._ahead : self._ahead + 1])
            self._ahead += 1
        elif self._chunked:
            self._peer.write(b"0")
        return True

    # ASGI

    async def receive(self) -> Message:
        """The whole body, once; then waits for the end, which is a disconnect."""
        if not self._taken:
            if self.head.expects_continue and not self._whole.is_set():
                self._peer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await self._whole.wait()
            self._taken = True
            await self._begin_turn(len(self._body))
            if not self._over.is_set():
                body = bytes(self._body)
                self._body = bytearray()
                self._peer.took_body()
                return {"type": "http.request", "body": body, "more_body": False}
        self._end_turn()  # who waits for the client to leave has done its work on the body
        await self._over.wait()
        return {"type": "http.disconnect"}

    async def _begin_turn(self, size: int) -> None:
        await self._peer.turn(size)
        self._in_work = size

    def _end_turn(self) -> None:
        size, self._in_work = self._in_work, 0
        if size:
            self._peer.end_turn(size)

    async def send(self, message: Message) -> None:
        """Writes the head, or a piece of the body. Without effect when nobody reads it."""
        if self._peer.paused:
            await self._peer.writable()
        if self._over.is_set():
            return
        if message["type"] == "http.response.start":
            self._start(message["status"], message.get("headers", ()))
            asyncio.get_running_loop().call_soon(self._write)  # where the body begins later
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        if self._bodiless:
            body = b""
        elif self._chunked:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not more:
                body += b"0\r\n\r\n"
            self._probes = 0
        self._write(body)
        if not more:
            self._end()

    def _start(self, status: int, headers: Headers) -> None:
        scope = self.head.scope
        self._started = True
        self._end_turn()
        self._bodiless = scope["method"] == "HEAD" or status in (204, 304)
        fields = [(b"date", self._peer.date()), (b"x-request-id", self.head.request_id), *headers]
        is_old, has_length = scope["http_version"] == "1.0", any(name == b"content-length" for name, _ in fields)
        if not self._whole.is_set() or self._peer.is_last():
            self.keep_alive = False
        if not has_length and not self._bodiless:
            if is_old:  # then the end of the connection is the end of the answer
                self.keep_alive = False
            else:
                self._chunked = True
                fields.append((b"transfer-encoding", b"chunked"))
        if not self.keep_alive:
            fields.append((b"connection", b"close"))
        elif is_old:
            fields.append((b"connection", b"keep-alive"))
        self._unsent = _whole_head(status, fields)[self._ahead :]

    def _write(self, body: bytes = b"") -> None:
        """The head goes out with the body where that is at hand: one call of the system for both."""
        data, self._unsent = self._unsent + body, b""
        if data:
            self._peer.write(data)

    def _end(self) -> None:
        self._whole.set()
        self._over.set()
        self._peer.answered()


def whole_answer(error: ApiError, date: bytes, request_id: bytes) -> bytes:
    """The last answer of a connection, to what came before any request was understood."""
    body = error.body()
    own = [(b"date", date), (b"x-request-id", request_id), (b"connection", b"close")]
    return _whole_head(error.status, own + _error_fields(error, body)) + body


def _whole_head(status: int, fields: Headers) -> bytes:
    """Status line and headers, with the empty line. Raises ValueError on a header that would be two."""
    lines = [_status_line(status), *(b"%b: %b\r\n" % field for field in fields), b"\r\n"]
    head = b"".join(lines)
    if not head.count(b"\r") == head.count(b"\n") == len(lines):
        raise ValueError("a header of an answer holds the end of a line")
    return head


def _error_fields(error: ApiError, body: bytes) -> list[tuple[bytes, bytes]]:
    own = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in (error.headers or {}).items()]
    return [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *own]


@functools.cache
def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return _PROTOCOL + f"{status} {phrase}\r\n".encode()
