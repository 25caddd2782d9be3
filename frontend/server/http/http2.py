"""Refuses HTTP/2 in its own words: a client that begins with it could not read an answer in HTTP/1.1."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # how such a connection begins (RFC 9113, 3.4)

_DATA, _HEADERS, _SETTINGS, _GOAWAY = 0x0, 0x1, 0x4, 0x7
_END_STREAM, _END_HEADERS = 0x1, 0x4
_HTTP_1_1_REQUIRED = 0xD
# Status 400 is entry 12 of the static table of RFC 7541, content-type entry 31, its value a literal of 16 bytes.
_HEADER_BLOCK = b"\x8c" + b"\x0f\x10\x10application/json" + b"\x00"  # 0: a header follows that no table has


def refusal(body: bytes, request_id: bytes) -> bytes:
    """Frames of an answer with status 400 to the client's first request, which comes along with its preface."""
    return b"".join(
        (
            _frame(_SETTINGS, 0, 0, b""),
            _frame(_HEADERS, _END_HEADERS, 1, _HEADER_BLOCK + _literal(b"x-request-id") + _literal(request_id)),
            _frame(_DATA, _END_STREAM, 1, body),
            _frame(_GOAWAY, 0, 0, (1).to_bytes(4, "big") + _HTTP_1_1_REQUIRED.to_bytes(4, "big")),
        )
    )


def _literal(text: bytes) -> bytes:
    """A string of at most 126 bytes, as RFC 7541, 5.2, writes it."""
    return bytes((len(text),)) + text


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload
