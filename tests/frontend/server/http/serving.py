"""A server on a real socket in front of a small application, and raw clients that send what they like."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httptools
import uvloop
from starlette.types import ASGIApp, Receive, Scope, Send

from frontend.server.bind import bind_http
from frontend.server.http.limits import Limits
from frontend.server.http.server import HttpServer


class Application:
    """ASGI: says what it got under /echo, in pieces under /stream when told, and nothing until told under /hold, or under /work,
    where it does not look whether the client is still there."""

    def __init__(self) -> None:
        self.running = self.most_running = 0
        self.working = 0  # under /work
        self.started: list[str] = []
        self.gone: list[str] = []  # paths whose client left before the answer
        self.go = asyncio.Event()
        self.changed = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        self.started.append(path)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self._note()
        try:
            await self._answer(scope, receive, send)
        finally:
            self.running -= 1
            self._note()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Returns when the condition holds, which is looked at whenever something happens here."""
        while not condition():
            self.changed.clear()
            await self.changed.wait()

    def _note(self) -> None:
        self.changed.set()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == "/unread":
            await _whole(send, b"unread")
            return
        if path == "/fault":
            raise LookupError("a fault of the application")
        message = await receive()
        if message["type"] == "http.disconnect":
            self.gone.append(path)
            return
        if path == "/work":
            self.working += 1
            self._note()
            await self.go.wait()
        if path == "/stream":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
        if path in ("/hold", "/stream", "/flood") and not await self._go_before_gone(receive):
            self.gone.append(path)
            return
        if path == "/stream":
            await send({"type": "http.response.body", "body": b"last"})
        elif path == "/flood":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(1000):
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        else:
            await _whole(send, b"%b %b %d" % (scope["method"].encode(), path.encode(), len(message["body"])))

    async def _go_before_gone(self, receive: Receive) -> bool:
        tasks = [asyncio.ensure_future(self.go.wait()), asyncio.ensure_future(receive())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        went = not tasks[1].done()
        for task in tasks:
            task.cancel()
        return went


async def _whole(send: Send, body: bytes) -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@dataclass
class Answer:
    """What came back."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    complete: bool = False


class _Answers:
    """httptools' callbacks: collects answers."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []

    def on_message_begin(self) -> None:
        self.answers.append(Answer())

    def on_header(self, name: bytes, value: bytes) -> None:
        self.answers[-1].headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self.answers[-1].body += body

    def on_message_complete(self) -> None:
        self.answers[-1].complete = True


class Client:
    """One connection. Whatever it reads is judged by a parser of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.raw = b""
        self._answers = _Answers()
        self._parser = httptools.HttpResponseParser(self._answers)

    def send(self, *data: bytes) -> None:
        self.writer.write(b"".join(data))

    async def answer(self) -> Answer:
        """The next answer, interim ones included."""
        while not (self._answers.answers and self._answers.answers[0].complete):
            data = await self.reader.read(65536)
            assert data, f"the server hung up after {self.raw!r}"
            self.feed(data)
        return self._answers.answers.pop(0)

    async def rest(self) -> list[Answer]:
        """All answers until the server hangs up."""
        while data := await self.reader.read(65536):
            self.feed(data)
        return self._answers.answers

    def feed(self, data: bytes) -> None:
        self.raw += data
        position = len(self._answers.answers)
        self._parser.feed_data(data)
        for answer in self._answers.answers[max(0, position - 1) :]:
            answer.status = answer.status or self._parser.get_status_code()

    def half_close(self) -> None:
        self.writer.write_eof()

    def reset(self) -> None:
        """Leaves without a farewell."""
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass


@dataclass
class Served:
    """A server, its application, and clients."""

    server: HttpServer
    application: Application
    port: int
    clients: list[Client] = field(default_factory=list)

    async def connect(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        return client

    async def until(self, condition: Callable[[], bool]) -> None:
        """Returns when the condition holds. What it asks is changed by the server's callbacks, so each turn of the loop may do."""
        while not condition():
            await asyncio.sleep(0.001)


@asynccontextmanager
async def serving(limits: Limits, front: Callable[[ASGIApp], ASGIApp]) -> AsyncIterator[Served]:
    listener, application = bind_http("127.0.0.1", 0), Application()
    server = HttpServer(front(application), listener, limits)
    await server.start()
    served = Served(server, application, listener.getsockname()[1])
    try:
        yield served
    finally:
        for client in served.clients:
            await client.close()
        await server.finish()
        listener.close()
    assert server.held == 0, "bytes are counted that nobody holds"
    assert not server.connections


def on_server(
    test: Callable[[Served], Awaitable[None]], *, front: Callable[[ASGIApp], ASGIApp] = lambda app: app, **limits: float
) -> None:
    """Runs a test on the event loop that the frontend uses. `front` is what stands before the application."""

    async def run() -> None:
        async with asyncio.timeout(30), serving(Limits(**limits), front) as served:  # type: ignore[arg-type]
            await test(served)

    uvloop.run(run())


def get(path: str, *headers: str, version: str = "1.1") -> bytes:
    return f"GET {path} HTTP/{version}\r\n{lines('Host: test', *headers)}\r\n".encode()


def post(path: str, body: bytes, *headers: str) -> bytes:
    return f"POST {path} HTTP/1.1\r\n{lines('Host: test', f'Content-Length: {len(body)}', *headers)}\r\n".encode() + body


def post_chunks(path: str, *chunks: bytes, trailers: str = "") -> bytes:
    """A body in chunks, whatever its pieces hold; `trailers` end with an empty line."""
    head = f"POST {path} HTTP/1.1\r\n{lines('Host: test', 'Transfer-Encoding: chunked')}\r\n".encode()
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n" + trailers.encode() + b"\r\n"


def lines(*headers: str) -> str:
    return "".join(f"{header}\r\n" for header in headers)
