"""A small HTTP/1.1 client: kept-alive connections, bodies handed over as they arrive.

A load generator shares the machine with what it measures. General clients spend more time on a streamed token than the engine
does; this one hands each piece of a body from the C parser straight to a callback.
"""

import asyncio
from collections.abc import Callable
from typing import cast
from urllib.parse import urlsplit

import httptools

BodyReader = Callable[[bytes], object]


class HttpError(Exception):
    """The server cannot be reached, left in the middle of an answer, or answered with an error status."""


class HttpClient:
    """Requests to one server, each on a connection of its own while it lasts."""

    def __init__(self, base_url: str, *, api_key: str = "") -> None:
        """`base_url` such as http://127.0.0.1:8000. Raises HttpError when it is none."""
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise HttpError(f"{base_url} is no address of a server: http://HOST:PORT is wanted")
        self.base_url = base_url.rstrip("/")
        self._host, self._secure = url.hostname, url.scheme == "https"
        self._port = url.port or (443 if self._secure else 80)
        self._path = url.path.rstrip("/")
        authorization = f"authorization: Bearer {api_key}\r\n" if api_key else ""
        self._headers = f"host: {url.netloc}\r\ncontent-type: application/json\r\n{authorization}"
        self._idle: list[_Connection] = []

    async def request(self, method: str, path: str, body: bytes, on_body: BodyReader) -> int:
        """Sends one request; `on_body` gets the body in pieces as they arrive. Returns the status when the body is complete.

        Raises HttpError when the connection cannot be made or ends early.
        """
        head = f"{method} {self._path}{path} HTTP/1.1\r\n{self._headers}content-length: {len(body)}\r\n\r\n"
        connection = await self._connection()
        try:
            status = await connection.exchange(head.encode("latin-1") + body, on_body)
        except BaseException:
            connection.close()  # cancelled or broken: what still arrives belongs to no one
            raise
        if connection.reusable:
            self._idle.append(connection)
        else:
            connection.close()
        return status

    async def fetch(self, method: str, path: str, body: bytes = b"") -> bytes:
        """One whole body. Raises HttpError, with what the server says, on any status but 200."""
        pieces: list[bytes] = []
        status = await self.request(method, path, body, pieces.append)
        data = b"".join(pieces)
        if status != 200:
            raise HttpError(f"{method} {self.base_url}{path}: status {status}: {data[:300].decode(errors='replace')}")
        return data

    def close(self) -> None:
        """Closes the connections that are kept."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _connection(self) -> "_Connection":
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(_Connection, self._host, self._port, ssl=self._secure or None)
        except OSError as error:
            raise HttpError(f"{self.base_url} cannot be reached: {error.strerror or error}") from error
        return connection


class _Connection(asyncio.Protocol):
    """One connection; at most one exchange at a time. Its `on_…` methods are the parser's callbacks."""

    def __init__(self) -> None:
        self.reusable = False
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._done: asyncio.Future[int] | None = None
        self._on_body: BodyReader = bytes

    async def exchange(self, request: bytes, on_body: BodyReader) -> int:
        """Sends the bytes of one request and waits for the end of its answer."""
        assert self._transport is not None
        self.reusable = False
        self._on_body = on_body
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._done

    def close(self) -> None:
        """Closes at once."""
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """From the event loop."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class does not inherit from it

    def data_received(self, data: bytes) -> None:
        """From the event loop."""
        if self._done is None or self._done.done():
            self.close()  # nothing was asked
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"the answer is no HTTP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        """From the event loop."""
        self.reusable = False
        self._fail(f"the server closed the connection: {exc}" if exc else "the server closed the connection")

    def on_body(self, body: bytes) -> None:
        """From the parser: a piece of the body."""
        self._on_body(body)

    def on_message_complete(self) -> None:
        """From the parser: the end of the answer."""
        if self._done is not None and not self._done.done():
            self.reusable = self._parser.should_keep_alive()
            self._done.set_result(self._parser.get_status_code())

    def _fail(self, reason: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(HttpError(reason))
