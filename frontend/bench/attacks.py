"""What an attacker sends: the catalogue of `engine-bench attack`. Each attack is bytes on a connection, or many connections."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial

import msgspec

from frontend.wire import WIRE_VERSION, Ask, ChatTurn, Conversation, Hello, Submit, TextPrompt, TokenPrompt, Tool, frames
from protocol.codec import encode
from protocol.params import SamplingParams

MIB = 1 << 20
# What docs/security.md states: bodies received, bodies worked on, prompts, the socket's messages, four processes that render.
BUDGETS_MIB = 256 + 320 + 256 + 64 + 4 * 256
_BODY = 16 * MIB - 100  # bytes: just below what any engine takes
_PATIENCE = 90.0  # seconds for an answer
_PIECE = MIB  # bytes written at a time


@dataclass(frozen=True)
class Target:
    """Where an engine listens."""

    host: str
    port: int
    socket: str  # of Python clients; empty: not attacked
    api_key: str


Send = Callable[[Target, bytes], Awaitable[str]]


@dataclass(frozen=True)
class Attack:
    """`prepare` makes what is sent, `send` returns what the attacker was told, in short."""

    name: str
    prepare: Callable[[], bytes]
    send: Send


def catalogue(target: Target) -> list[Attack]:
    """All attacks on an engine that listens there."""
    over_http = [*_heads(), *_bodies(), *_crowds()]
    return [*over_http, *_over_ipc()] if target.socket else over_http


# HTTP: what stands before the body


def _heads() -> Iterable[Attack]:
    line = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
    yield Attack("one header of 64 MiB", lambda: line + b"x: " + b"a" * (64 * MIB), _talk)
    yield Attack("57 MiB of short headers", lambda: line + b"a:b\r\n" * (57 * MIB // 5), _talk)
    chunked = line + b"transfer-encoding: chunked\r\n\r\n"
    yield Attack("57 MiB of trailers", lambda: chunked + b"1\r\n{\r\n0\r\n" + b"a:b\r\n" * (57 * MIB // 5), _talk)
    yield Attack("16 MiB in chunks of a byte", lambda: chunked + b"1\r\n \r\n" * (16 * MIB // 6), _talk)
    yield Attack("chunk extensions of 32 MiB", lambda: chunked + b"1;" + b"a" * (32 * MIB), _talk)
    yield Attack(
        "a million requests behind each other", lambda: b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n" * 1_000_000, _talk
    )
    yield Attack("32 MiB of empty lines", lambda: b"\r\n" * (16 * MIB), _talk)


# HTTP: bodies


def _bodies() -> Iterable[Attack]:
    completions, chats = "/v1/completions", "/v1/chat/completions"
    yield _body("8 million token ids", completions, lambda: _filled('{"prompt":[', "5,", "5]}"))
    yield _body("5 million empty prompts", completions, lambda: _filled('{"prompt":[', "[],", "[]]}"))
    yield _body("3 million texts", completions, lambda: _filled('{"prompt":[', '"ab",', '"ab"]}'))
    yield _body("1024 texts of 16,000 letters", completions, lambda: msgspec.json.encode({"prompt": ["a b c d " * 2000] * 1024}))
    yield _body("a text of 16 MiB", completions, lambda: _filled('{"prompt":"', "hello ", '"}'))
    yield _body("a text of 16 MiB in escapes", completions, lambda: _filled('{"prompt":"', "\\u0141", '"}'))
    yield _body("a word of a million letters", completions, lambda: msgspec.json.encode({"prompt": "a" * 1_000_000}))
    yield _body("logit_bias of 5 million lists", completions, lambda: _filled('{"prompt":"a","logit_bias":[', "[],", "[]]}"))
    yield _body("logit_bias of a million tokens", completions, lambda: _numbered('{"prompt":"a","logit_bias":{', '"%d":1', "}}"))
    yield _body("3 million stop strings", completions, lambda: _filled('{"prompt":"a","stop":[', '"ab",', '"ab"]}'))
    yield _body("4 million stop tokens", completions, lambda: _filled('{"prompt":"a","stop_token_ids":[', "500,", "500]}"))
    yield _body("2 million unknown fields", completions, lambda: _filled('{"prompt":"a",', '"a":1,', '"b":1}'))
    yield _body("16 MiB of brackets", completions, lambda: b"[" * _BODY)
    yield _body("a grammar of 16 MiB", completions, lambda: _filled('{"prompt":"a","guided_regex":"', "(a|b)*", '"}'))
    yield _body(
        "a schema of a million types",
        completions,
        lambda: _numbered('{"prompt":"a","guided_json":{"anyOf":[', '{"const":%d}', "]}}"),
    )
    stops = [chr(97 + index) * 1024 for index in range(16)]
    yield _body(
        "16 long stops, 1024 outputs",
        completions,
        lambda: msgspec.json.encode({"prompt": "a", "stop": stops, "n": 1024, "max_tokens": 4}),
    )
    yield _body(
        "600,000 messages",
        chats,
        lambda: _filled('{"messages":[', '{"role":"user","content":""},', '{"role":"user","content":""}]}'),
    )
    yield _body("500,000 parts", chats, lambda: _filled(_PARTS, '{"type":"text","text":""},', '{"type":"text","text":""}]}]}'))
    yield _body("a message of 16 MiB", chats, lambda: _filled(_CONTENT, "hello ", '"}]}'))
    yield _body("16 MiB of control tokens", chats, lambda: _filled(_CONTENT, "<|im_end|>", '"}]}'))
    yield _body("16 MiB of halves of control tokens", chats, lambda: _filled(_CONTENT, "<|", '"}]}'))
    for size in (1, 4):
        yield _body(f"{size} MiB of token ids", completions, partial(_filled, '{"prompt":[', "5,", "5]}", size * MIB))
        yield _body(f"{size} MiB of empty prompts", completions, partial(_filled, '{"prompt":[', "[],", "[]]}", size * MIB))
        yield _body(f"{size} MiB of letters", completions, partial(_filled, '{"prompt":"', "a", '"}', size * MIB))
        yield _body(f"{size} MiB of spaces", completions, partial(_filled, '{"prompt":"', " ", '"}', size * MIB))
        yield _body(
            f"{size} MiB of stop strings", completions, partial(_filled, '{"prompt":"a","stop":[', '"ab",', '"ab"]}', size * MIB)
        )
        yield _body(
            f"{size} MiB of parts",
            chats,
            partial(_filled, _PARTS, '{"type":"text","text":""},', '{"type":"text","text":""}]}]}', size * MIB),
        )
        yield _body(f"{size} MiB of a message", chats, partial(_filled, _CONTENT, "hello ", '"}]}', size * MIB))
        yield _body(f"{size} MiB of control tokens", chats, partial(_filled, _CONTENT, "<|im_end|>", '"}]}', size * MIB))
        yield _body(f"/detokenize: {size} MiB of ids", "/detokenize", partial(_filled, '{"tokens":[', "30000,", "5]}", size * MIB))
    for size in (1, 4):  # what is just below the limit of a short context
        yield _body(
            f"{size} MiB of small objects",
            completions,
            partial(_filled, '{"prompt":"a","guided_json":{"anyOf":[', "{},", "{}]}}", size * MIB - 1000),
        )
    yield _body(
        "8 prompts of 7,000 tokens, 128 outputs each",
        completions,
        lambda: msgspec.json.encode({"prompt": [[5 + n] * 7000 for n in range(8)], "n": 128, "max_tokens": 16, "ignore_eos": True}),
    )
    yield _body(
        "a schema of 250,000 characters",
        completions,
        lambda: _filled('{"prompt":"a","guided_json":{"anyOf":[', '{"type":"string"},', '{"type":"null"}]}}', 250_000),
    )
    tool = '{"type":"function","function":{"name":"f%d","parameters":{}}}'
    yield _body("200,000 tools", chats, lambda: _numbered('{"messages":[{"role":"user","content":"a"}],"tools":[', tool, "]}"))
    yield _body(
        "/tokenize: 16 MiB of messages",
        "/tokenize",
        lambda: _filled('{"messages":[', '{"role":"user","content":"hello"},', '{"role":"user","content":"a"}]}'),
    )
    yield _body("/tokenize: a text of 16 MiB", "/tokenize", lambda: _filled('{"prompt":"', "hello ", '"}'))
    yield _body("/detokenize: 8 million ids", "/detokenize", lambda: _filled('{"tokens":[', "5,", "5]}"))
    yield _body("/detokenize: 3 million large ids", "/detokenize", lambda: _filled('{"tokens":[', "30000,", "5]}"))


_CONTENT = '{"messages":[{"role":"user","content":"'
_PARTS = '{"messages":[{"role":"user","content":['


def _filled(beginning: str, piece: str, end: str, size: int = _BODY) -> bytes:
    """As much of `piece` as a body of that size holds."""
    count = (size - len(beginning) - len(end)) // len(piece)
    return beginning.encode() + piece.encode() * count + end.encode()


def _numbered(beginning: str, piece: str, end: str) -> bytes:
    count = (_BODY - len(beginning) - len(end)) // (len(piece) + 6)
    return (beginning + ",".join([piece % number for number in range(count)]) + end).encode()


def _body(name: str, path: str, body: Callable[[], bytes]) -> Attack:
    async def send(target: Target, data: bytes) -> str:
        key = f"authorization: Bearer {target.api_key}\r\n" if target.api_key else ""
        head = (
            f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{key}content-length: {len(data)}\r\n\r\n"
        )
        return await _talk(target, head.encode() + data)

    return Attack(name, body, send)


async def _talk(target: Target, data: bytes) -> str:
    """Sends everything, or as much as is taken, and returns the status of the first answer."""
    reader, writer = await asyncio.open_connection(target.host, target.port)
    writing = asyncio.ensure_future(_write(writer, data))
    try:
        async with asyncio.timeout(_PATIENCE):
            line = await reader.readline()
        return line.decode(errors="replace").strip().removeprefix("HTTP/1.1 ")[:60] or "closed"
    except ConnectionError:
        return "closed"
    except TimeoutError:
        return "no answer"
    finally:
        writing.cancel()
        writer.transport.abort()
        await asyncio.gather(writing, return_exceptions=True)


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    for start in range(0, len(data), _PIECE):
        writer.write(data[start : start + _PIECE])
        await writer.drain()


# HTTP: many at once


def _crowds() -> Iterable[Attack]:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    many = msgspec.json.encode({"prompt": "a", "n": 1000, "max_tokens": 100, "stream": True, "ignore_eos": True})
    yield Attack("1000 connections that say nothing", bytes, _crowd(1000))
    yield Attack("1000 heads that do not end", lambda: b"GET /health HTTP/1.1\r\nx: " + b"a" * 60_000, _crowd(1000))
    for size in (1, 4, 16):
        name, length = f"{160 // size} bodies of {size} MiB", size * MIB
        body = partial(_filled, '{"prompt":[', "500,", "500]}", length)
        yield Attack(f"{name} that do not end", partial(_headed, head, body, -1), _crowd(160 // size))
        yield Attack(name, partial(_headed, head, body, None), _crowd(160 // size))
    yield Attack("8 streams of 1000 outputs that nobody reads", lambda: head % len(many) + many, _crowd(8))


def _headed(head: bytes, body: Callable[[], bytes], end: int | None) -> bytes:
    data = body()
    return head % len(data) + data[:end]


def _crowd(size: int) -> Send:
    async def send(target: Target, data: bytes) -> str:
        writers: list[asyncio.StreamWriter] = []
        try:
            async with asyncio.timeout(_PATIENCE):
                for _ in range(size):
                    with contextlib.suppress(OSError):
                        writers.append((await asyncio.open_connection(target.host, target.port))[1])
                works = [asyncio.ensure_future(_write(writer, data)) for writer in writers]
                await asyncio.wait(works, timeout=10.0)
                for work in works:
                    work.cancel()
                await asyncio.gather(*works, return_exceptions=True)
                await asyncio.sleep(1.0)
        except TimeoutError:
            return "not all connected"
        finally:
            for writer in writers:
                writer.transport.abort()
        return f"{len(writers)} connections"

    return send


# the Unix socket


def _over_ipc() -> Iterable[Attack]:
    few, ids = SamplingParams(max_tokens=4), bytes(4 * 4000)
    lists = Conversation([ChatTurn("user", "a")], tools=(Tool("f", None, {"a": [[]] * (4 * MIB - 1000)}),))
    scored = SamplingParams(max_tokens=2000, logprobs=20, ignore_eos=True)
    asked: dict[str, Callable[[], list[object]]] = {
        "3,000 traces": lambda: [Ask(number, "trace") for number in range(3_000)],
        "a million stats": lambda: [Ask(1, "stats")] * 1_000_000,
        "a million times health": lambda: [Ask(1, "health")] * 1_000_000,
        "a text of 60 MiB": lambda: [Submit(1, TextPrompt("hello " * (10 * MIB)), SamplingParams())],
        "a tool of 4 million lists": lambda: [Submit(1, lists, few)],
        "100 outputs with 20 candidates for each token": lambda: [Submit(1 + n, TokenPrompt(bytes(8)), scored) for n in range(100)],
        "19,000 prompts of 4,000 tokens": lambda: [Submit(1 + number, TokenPrompt(ids), few) for number in range(19_000)],
    }
    for name, messages in asked.items():
        yield Attack(f"socket: {name}", partial(_encoded, messages), _on_socket(reads=True))
        yield Attack(f"socket: {name}, nothing read", partial(_encoded, messages), _on_socket(reads=False))
    yield Attack(
        "socket: a frame of 64 MiB of nothing", lambda: (64 * MIB).to_bytes(4, "little") + bytes(64 * MIB), _on_socket(reads=True)
    )
    yield Attack("socket: 60 million empty lists", lambda: frames([b"\x90" * (60 * MIB)]), _on_socket(reads=True))


def _encoded(messages: Callable[[], list[object]]) -> bytes:
    return frames(map(encode, messages()))


def _on_socket(*, reads: bool) -> Send:
    async def send(target: Target, data: bytes) -> str:
        reader, writer = await asyncio.open_unix_connection(target.socket)
        writing = asyncio.ensure_future(_write(writer, frames([encode(Hello(WIRE_VERSION))]) + data))
        received = 0
        try:
            async with asyncio.timeout(5.0):
                while reads and (piece := await reader.read(MIB)):
                    received += len(piece)
                await asyncio.wait({writing})
                await asyncio.sleep(5.0)
        except (TimeoutError, ConnectionError):
            pass
        finally:
            writing.cancel()
            writer.transport.abort()
            await asyncio.gather(writing, return_exceptions=True)
        return f"{received} bytes"

    return send
