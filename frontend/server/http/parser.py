"""From the bytes of a request to what ASGI calls its scope, and to the bytes of its body. httptools (llhttp) judges the framing."""

import re
from dataclasses import dataclass
from urllib.parse import unquote

import httptools
from starlette.types import Scope

from frontend.server.api.errors import ApiError
from frontend.server.visit import is_name, new_name

_REQUEST_LINE = re.compile(rb"[A-Z-]+ +[^ \r\n]+ HTTP/1\.[01]\r\n")  # llhttp also takes HTTP/0.9, RTSP and ICE
_UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)
_EMPTY_LINE = b"\r\n\r\n"
_ONCE = frozenset({b"host", b"transfer-encoding", b"content-length"})  # two of them, and two readers may not see the same request
_PIECE = 64 << 10  # bytes of a body that are parsed at once, and …
_PIECE_OF_CHUNKS = 4 << 10  # … where it comes in chunks, which may be of a byte each
_CHUNK_LINE = 16  # bytes around a chunk that are nobody's fault: its size in digits, and two ends of lines


@dataclass(slots=True)
class Head:
    """Request line and headers."""

    scope: Scope  # without the connection's fields
    length: int  # bytes of the body that are announced; 0 where none or where it comes in chunks
    chunked: bool
    keep_alive: bool  # the client would send another request behind this one
    expects_continue: bool
    request_id: bytes  # the client's own, or ours


class RequestParser:
    """Takes requests one after the other: a head, pieces of its body until `complete`, the next head.

    It is handed whole heads and exact bodies (see `piece`), so it never sees bytes of the request behind.
    """

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._left = 0  # bytes of the body to come; -1 where it comes in chunks
        self._tail = b""  # the last bytes of the piece before
        self._begun = False
        self._clear()

    def head(self, data: bytes) -> Head:
        """Takes a head, which ends with its empty line. Raises ApiError."""
        if not _REQUEST_LINE.match(data):
            raise _malformed(_explain(data))
        self._clear()
        self.framing = len(data)
        # An upgrade that is not taken up is ignored (RFC 9110, 7.8), but llhttp would stop at it.
        self._feed(_UPGRADE.sub(b"", data))
        if not self._has_head:
            raise _malformed("the headers are incomplete")
        scope = self._scope()
        values = self._values
        coding = values.get(b"transfer-encoding")
        if coding is not None and (coding.strip().lower() != b"chunked" or scope["http_version"] == "1.0"):
            raise _malformed("Transfer-Encoding can only be 'chunked', and only with HTTP/1.1")
        length = int(values.get(b"content-length", b"0"))  # llhttp has seen to it that these are digits, and only once
        self._left = length if coding is None else -1
        expects_continue = values.get(b"expect", b"").lower() == b"100-continue" and scope["http_version"] == "1.1"
        given = values.get(b"x-request-id", b"")
        name = given if is_name(given) else new_name().encode()
        scope["request_id"] = name.decode()
        return Head(scope, length, coding is not None, self._keep_alive, expects_continue, name)

    def piece(self, data: bytearray) -> int:
        """How many of these bytes, which come behind what was taken, to take next: none of them the next request's."""
        if self._left >= 0:
            return min(self._left, len(data), _PIECE)
        # A body in chunks can end with an empty line alone, which may have begun in the piece before.
        across: int = (self._tail + data[: len(_EMPTY_LINE) - 1]).find(_EMPTY_LINE)
        if across >= 0:
            return across + len(_EMPTY_LINE) - len(self._tail)
        end: int = data.find(_EMPTY_LINE, 0, _PIECE_OF_CHUNKS)
        return end + len(_EMPTY_LINE) if end >= 0 else min(len(data), _PIECE_OF_CHUNKS)

    def body(self, data: bytes) -> bytes:
        """Takes a piece, and returns what of it is body. Raises ApiError."""
        self._body.clear()
        self.chunks = 0
        self._feed(data)
        body = b"".join(self._body)
        if self._left >= 0:
            self._left -= len(data)
        else:
            self._tail = (self._tail + data)[-len(_EMPTY_LINE) + 1 :]
            framing = len(data) - len(body)
            self.framing += framing - min(framing, self.chunks * _CHUNK_LINE)
        return body

    # httptools' callbacks

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        if self._begun:
            raise ApiError(400, "bytes behind the request")  # cannot be: see `piece`
        self._begun = True

    def on_url(self, url: bytes) -> None:
        """The target, or a part of it."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; or a trailer, which nothing here reads."""
        if self._has_head:
            return
        name = name.lower()
        if name in _ONCE and name in self._values:
            self._twice = name
        self._values[name] = value
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Only now the parser can tell whether the connection is to be kept."""
        self._has_head = True
        self._keep_alive = self._parser.should_keep_alive()

    def on_chunk_header(self) -> None:
        """A chunk begins."""
        self.chunks += 1

    def on_body(self, body: bytes) -> None:
        """Bytes of the body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        self.complete = True

    # inside

    def _clear(self) -> None:
        self.complete = False  # the request
        self.framing = 0  # bytes so far of the head, and of chunk extensions and trailers
        self._left = 0
        self._tail = b""
        self._begun = self._has_head = self._keep_alive = False
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._values: dict[bytes, bytes] = {}
        self._twice = b""  # the name of a header that must not come twice, and did
        self._body: list[bytes] = []  # of this piece
        self.chunks = 0  # that began in this piece

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:
            raise _malformed("CONNECT is for proxies, and this is none") from error
        except httptools.HttpParserError as error:
            raise _malformed(str(error)) from error

    def _scope(self) -> Scope:
        if self._twice:
            raise _malformed(f"more than one {self._twice.decode()}")
        method = self._parser.get_method().decode("ascii")
        try:
            url = httptools.parse_url(self._target)
        except httptools.HttpParserError as error:
            raise _malformed("the request's target is no URL") from error
        raw_path = url.path or b"/"  # http://host has none
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": self._parser.get_http_version(),
            "method": method,
            "scheme": "http",
            "path": unquote(raw_path.decode("ascii")),  # llhttp takes no other; what is not UTF-8 within becomes U+FFFD
            "raw_path": raw_path,
            "query_string": url.query or b"",
            "root_path": "",
            "headers": self._headers,
        }


def _malformed(reason: str) -> ApiError:
    return ApiError(400, f"this is not valid HTTP/1.1: {reason}", code="malformed_request")


def _explain(data: bytes) -> str:
    if data.startswith(b"PRI * HTTP/2"):
        return "HTTP/2 is not spoken here; use HTTP/1.1"
    return "a request begins with METHOD TARGET HTTP/1.1"
