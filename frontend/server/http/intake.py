"""The bytes that a connection has received and not parsed, and the requests in them: one head or one piece of a body at a time."""

import re

from frontend.server.api.errors import ApiError
from frontend.server.http import http2
from frontend.server.http.limits import Limits
from frontend.server.http.parser import Head, RequestParser

_EMPTY_LINE = re.compile(rb"\n\r?\n")  # ends a head; bare line feeds are found too, for the parser to refuse


class Intake:
    """Nothing is parsed before it is asked for, so what is sent behind a request waits as bytes. Its length is theirs."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._parser = RequestParser()
        self._bytes = bytearray()
        self._searched = 0  # of the head that is incomplete, the first bytes in which it does not end
        self.wants_http2 = False  # the client began so

    def __len__(self) -> int:
        return len(self._bytes)

    def add(self, data: bytes) -> None:
        """Bytes came."""
        self._bytes += data

    def clear(self) -> None:
        """Nothing more will be asked for."""
        self._bytes.clear()

    @property
    def complete(self) -> bool:
        """The request whose head came last is here in full."""
        return self._parser.complete

    @property
    def chunks(self) -> int:
        """That began in the last piece."""
        return self._parser.chunks

    def head(self) -> Head | None:
        """The next head, if it is here in full. Raises ApiError when it is malformed or too long."""
        pending, limit = self._bytes, self._limits.head
        if not self._searched:
            del pending[: len(pending) - len(pending.lstrip(b"\r\n"))]  # empty lines before a request are tolerated (RFC 9112, 2.2)
            if not pending:
                return None
            if not 0x41 <= pending[0] <= 0x5A:  # A to Z: what begins no method would have us wait for its end in vain
                text = "this is not HTTP: a request begins with its method; TLS is not spoken"
                raise ApiError(400, text, code="malformed_request")
        found = _EMPTY_LINE.search(pending, self._searched)
        if (len(pending) if found is None else found.end()) > limit:
            raise self._too_long()
        if found is None:
            self._searched = max(1, len(pending) - 2)  # the last two bytes may belong to the empty line
            return None
        self._searched = 0
        data = self._cut(found.end())
        self.wants_http2 = http2.PREFACE.startswith(data)
        head = self._parser.head(data)
        if head.length > self._limits.body:
            raise self.too_large()
        return head

    def body(self) -> bytes:
        """The next piece of the body that came with the last head. Raises ApiError when it is malformed or its framing too long."""
        body = self._parser.body(self._cut(self._parser.piece(self._bytes)))
        if self._parser.framing > self._limits.head:
            raise self._too_long()
        return body

    def too_large(self) -> ApiError:
        """For a body beyond the limit."""
        return ApiError(413, f"the body is larger than {self._limits.body} bytes", code="body_too_large")

    def _too_long(self) -> ApiError:
        what = "request line, headers, chunk extensions and trailers are together"
        return ApiError(431, f"{what} longer than {self._limits.head} bytes", code="headers_too_large")

    def _cut(self, size: int) -> bytes:
        with memoryview(self._bytes) as view:
            taken = bytes(view[:size])
        del self._bytes[:size]
        return taken
