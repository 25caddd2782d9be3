"""The Python client's socket: messages that are nearly right, and frames that are none."""

import asyncio
import json
from random import Random
from typing import Any

import msgspec

from frontend.wire import WIRE_VERSION, Ask, Hello
from protocol.codec import encode
from tests.fuzz.target import HANG
from tests.fuzz.values import anything, mutated, text

_TAGS = ("submit", "submit", "submit", "cancel", "ask", "hello", "nonsense")
_FRAMES = 20


class Frames:
    """A case: what a client sends behind its Hello, some twenty frames."""

    name = "socket"
    per_case = _FRAMES

    def __init__(self, path: str) -> None:
        self._path = path

    def make(self, draw: Random) -> bytes:
        data = b""
        for number in range(1, _FRAMES + 1):
            messages = [_message(draw, number) for _ in range(draw.choice((1, 1, 1, 2, 5)))]
            frame = encode(messages)
            if draw.random() < 0.4:
                frame = mutated(frame, draw)
            length = len(frame) if draw.random() < 0.995 else draw.choice((0, 1, 2**20, 2**26, 2**32 - 1))
            data += length.to_bytes(4, "little") + frame
        return data

    async def run(self, case: bytes) -> str:
        reader, writer = await asyncio.open_unix_connection(self._path)
        try:
            hello = encode([Hello(WIRE_VERSION)])
            last = encode([Ask(2**62, "health")])
            writer.write(len(hello).to_bytes(4, "little") + hello + case + len(last).to_bytes(4, "little") + last)
            writer.write_eof()
            async with asyncio.timeout(HANG):
                while data := await reader.read(1 << 16):
                    if b"failed on this request" in data:
                        return "a fault of the engine: it failed on a request"
        except ConnectionError:
            pass
        except TimeoutError:
            return "the connection was not closed"
        finally:
            writer.transport.abort()
        return ""


def _message(draw: Random, number: int) -> list[Any]:
    tag = draw.choice(_TAGS)
    if draw.random() < 0.1:
        return [tag, *(_plain(anything(draw)) for _ in range(draw.randrange(4)))]
    match tag:
        case "submit":
            return [tag, number, _prompt(draw), _params(draw), draw.random() < 0.5, text(draw)]
        case "cancel":
            return [tag, draw.randrange(1, _FRAMES + 1)]
        case "ask":
            return [tag, number, draw.choice(("health", "stats", "trace", "story", "the time"))]
    return [tag, number]


def _prompt(draw: Random) -> list[Any]:
    match draw.randrange(4):
        case 0:
            return [
                "tokens",
                draw.randbytes(draw.choice((0, 3, 4))) + b"".join(draw.randrange(49152).to_bytes(4, "little") for _ in range(9)),
            ]
        case 1:
            return ["text", text(draw), draw.random() < 0.5]
        case 2:
            turns = [[draw.choice(("user", "assistant", "system", "wizard")), text(draw)] for _ in range(draw.randrange(4))]
            return ["conversation", turns, draw.random() < 0.5, draw.random() < 0.2]
    return ["conversation", _plain(anything(draw))]


def _params(draw: Random) -> Any:
    params: dict[str, Any] = {"max_tokens": draw.randrange(1, 5)}
    for name in ("temperature", "top_p", "top_k", "min_p", "n", "seed", "stop", "logprobs", "min_tokens", "structured", "priority"):
        if draw.random() < 0.15:
            params[name] = draw.choice((0, 1, 2, 0.5, -1, 2**40, "a", ["a"], _plain(anything(draw))))
    return params


def _plain(value: Any) -> Any:
    """JSON's numbers without end have no place in msgpack."""
    try:
        msgspec.msgpack.encode(value)
        return value
    except (OverflowError, UnicodeEncodeError):
        return json.dumps(value)[:100]
