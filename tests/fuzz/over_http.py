"""HTTP: bodies made of the types that the engine itself describes, and bytes that are hardly HTTP."""

import asyncio
import json
import re
from collections import Counter
from random import Random
from typing import Any

import httptools

from tests.fuzz.target import HANG
from tests.fuzz.values import Schemas, encoded, mutated, text

_HEADERS = ("expect", "connection", "upgrade", "origin", "authorization", "x-request-id", "content-type", "te", "host")
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_MOST_TOKENS = 4  # of an answer: the engine is fuzzed, not its device
_LIMITED = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_FEW = ("n", "best_of", "prompt_logprobs")


class _Answer:
    """httptools' callbacks."""

    def __init__(self) -> None:
        self.body = b""
        self.complete = False

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


async def exchange(host: str, port: int, data: bytes) -> bytes:
    """All that comes back until the server hangs up. Raises TimeoutError on a hang."""
    reader, writer = await asyncio.open_connection(host, port)
    received = b""
    try:
        writer.write(data)
        writer.write_eof()
        async with asyncio.timeout(HANG):
            while piece := await reader.read(1 << 16):
                received += piece
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
    return received


class Bodies:
    """JSON bodies for every route that takes one. A case: the path, a line feed, the body."""

    name = "bodies"
    per_case = 1

    def __init__(self, host: str, port: int, document: dict[str, Any]) -> None:
        """`document`: the engine's OpenAPI document."""
        self.statuses: Counter[int] = Counter()  # of the answers: whether the fuzz reaches behind the types
        self._host, self._port = host, port
        self._schemas = Schemas(document["components"]["schemas"])
        self._bodies: list[tuple[str, dict[str, Any]]] = []
        for path, operations in document["paths"].items():
            if (body := operations.get("post", {}).get("requestBody")) is not None:
                self._bodies.append((path, body["content"]["application/json"]["schema"]))

    def make(self, draw: Random) -> bytes:
        path, schema = draw.choice(self._bodies)
        value = self._schemas.value(schema, draw)
        if isinstance(value, dict):
            value = _affordable(value, draw)
        return path.encode() + b"\n" + encoded(value, draw)

    async def run(self, case: bytes) -> str:
        path, _, body = case.partition(b"\n")
        head = b"POST %b HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        if not path.startswith(b"/") or any(byte <= 32 for byte in path):
            return ""
        try:
            received = await exchange(self._host, self._port, head % (path, len(body)) + body)
        except TimeoutError:
            return "no answer"
        answer = _Answer()
        parser = httptools.HttpResponseParser(answer)
        try:
            parser.feed_data(received)
        except httptools.HttpParserError as error:
            return f"the answer is no HTTP: {error}"
        status = parser.get_status_code() or 0
        self.statuses[status] += 1
        if b'"timeout"' in body and b'"deadline_exceeded"' in answer.body and status in (200, 504) and answer.complete:
            return ""  # as the request asked for
        if status >= 500 or not status or not answer.complete:
            return f"status {status}, {'complete' if answer.complete else 'cut off'}: {answer.body[:300]!r}"
        if b"internal_error" in answer.body or b'"server_error"' in answer.body:
            return f"an error of the server in an answer with status {status}: {answer.body[-300:]!r}"
        if status != 200:
            try:
                json.loads(answer.body)["error"]["message"]
            except (ValueError, KeyError, TypeError):
                return f"status {status} without an error's message: {answer.body[:300]!r}"
        return ""


def _affordable(fields: dict[str, Any], draw: Random) -> dict[str, Any]:
    for name in _LIMITED:
        value = fields.get(name)
        if value is None or (isinstance(value, int) and value > _MOST_TOKENS):
            fields[name] = draw.randrange(1, _MOST_TOKENS + 1)
    for name in _FEW:
        if isinstance(fields.get(name), int) and 4 < fields[name] < 1000:
            fields[name] = draw.randrange(1, 4)
    if isinstance(fields.get("min_tokens"), int) and draw.random() < 0.9:
        del fields["min_tokens"]
    return fields


class Bytes:
    """Bytes on the wire. A case: all that a client sends."""

    name = "http"
    per_case = 1
    _PATHS = (
        b"/health",
        b"/v1/models",
        b"/v1/completions",
        b"/tokenize",
        b"/nothing",
        b"/metrics",
        b"/docs",
        b"*",
        b"http://localhost/ping",
    )

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port

    def make(self, draw: Random) -> bytes:
        requests = []
        for _ in range(draw.choice((1, 1, 2, 4))):
            method = draw.choice((b"GET", b"POST", b"POST", b"OPTIONS", b"HEAD", b"PUT", b"CONNECT", b"get", b"PRI"))
            lines = [b"%b %b HTTP/1.%d" % (method, draw.choice(self._PATHS), draw.choice((1, 1, 1, 0, 9))), b"host: localhost"]
            body = draw.choice((b"", b'{"prompt":"a","max_tokens":1}', b"{", draw.randbytes(20)))
            chunked = draw.random() < 0.3
            if chunked:
                lines.append(b"transfer-encoding: chunked")
                body = b"".join(b"%x\r\n%c\r\n" % (1, byte) for byte in body) + b"0\r\n\r\n"
            elif body or draw.random() < 0.2:
                lines.append(b"content-length: %d" % (len(body) + draw.choice((0, 0, 0, 0, 1, -1, 10**20))))
            for _ in range(draw.randrange(3)):
                name = draw.choice(
                    ("expect", "connection", "upgrade", "origin", "authorization", "x-request-id", "content-type", "te", "host")
                )
                value = draw.choice(("100-continue", "close", "keep-alive", "h2c", "application/json", "Bearer x", text(draw)))
                lines.append(f"{name}: {value}".encode("utf-8", "surrogatepass"))
            requests.append(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        data = b"".join(requests)
        return mutated(data, draw) if draw.random() < 0.7 else data

    async def run(self, case: bytes) -> str:
        try:
            received = await exchange(self._host, self._port, case)
        except TimeoutError:
            return "the connection was not closed"
        statuses = [int(status) for status in _STATUS.findall(received)]
        if received and not statuses and not case.startswith(b"PRI "):  # to whom begins with HTTP/2, HTTP/2 is spoken
            return f"the answer is no HTTP: {received[:100]!r}"
        return f"status {max(statuses)}: {received[:300]!r}" if statuses and max(statuses) >= 500 else ""
