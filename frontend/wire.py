"""Messages between the Python client and the frontend, and how they are framed on a Unix stream socket.

A frame is its length, 4 bytes little-endian, and one message in msgpack. Fields are appended with defaults, never reordered. The
client numbers its requests; a number means nothing on another connection.
"""

import struct
from typing import Literal

import msgspec

from protocol.codec import Decoder, encode
from protocol.errors import ProtocolError
from protocol.messages import EngineStats, FinishReason, Message, TraceRecords
from protocol.params import SamplingParams

WIRE_VERSION = 1
MAX_REQUEST_FRAME = 16 << 20  # bytes: above any prompt that a context holds, below what would hurt the server
MAX_ANSWER_FRAME = 256 << 20  # bytes: a whole trace, or the log-probabilities of long outputs

ErrorKind = Literal["invalid", "overloaded", "recovering", "unavailable", "lost", "version"]

_LENGTH = struct.Struct("<I")


# client -> server


class Hello(Message, frozen=True, tag="hello"):
    """The first frame of a connection."""

    version: int


class Submit(Message, frozen=True, tag="submit"):
    """One prompt, as text or as token ids."""

    id: int
    prompt: str | list[int]
    params: SamplingParams
    stream: bool = True  # False: the client wants the whole output only
    add_special_tokens: bool = True
    cache_salt: str = ""


class Chat(Message, frozen=True, tag="chat"):
    """One conversation, for the model's chat template."""

    id: int
    messages: list[dict[str, str]]
    params: SamplingParams
    stream: bool = True
    continue_final_message: bool = False
    cache_salt: str = ""


class Cancel(Message, frozen=True, tag="cancel"):
    """The client has lost interest in a request. Nothing is answered; unknown numbers are ignored."""

    id: int


class Ask(Message, frozen=True, tag="ask"):
    """Asks for one Health, Stats or Trace."""

    id: int
    what: Literal["health", "stats", "trace"]


ClientToServer = Hello | Submit | Chat | Cancel | Ask
CLIENT_TO_SERVER: Decoder[ClientToServer] = Decoder(ClientToServer)


# server -> client


class Welcome(Message, frozen=True, tag="welcome"):
    """Answers Hello: both sides speak the same version."""

    version: int
    model: str
    max_model_len: int


class TokenLogprob(Message, frozen=True):
    """Log-probability of one output token, its rank among all (1 = most likely), and the most likely candidates."""

    token_id: int
    logprob: float
    rank: int
    top: list[tuple[int, float]]  # (token id, log-probability), falling


class Delta(Message, frozen=True, gc=False):
    """What was added to output `index` of a request. The one with a finish reason is the last of its output."""

    id: int
    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None  # one per token, where asked
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None  # the stop token id or stop string; None: end of sequence, or no stop


class Done(Message, frozen=True):
    """All outputs of a request have ended."""

    id: int
    prompt_token_ids: list[int]  # empty where the client sent them
    num_cached_tokens: int  # of the prompt, found in the prefix cache


class Update(Message, frozen=True, tag="update"):
    """All that came since the last frame, for any requests of the connection."""

    deltas: list[Delta]
    done: list[Done]


class Failed(Message, frozen=True, tag="failed"):
    """A request, a question, or with id 0 the connection's last frame, was refused or given up."""

    id: int
    kind: ErrorKind
    message: str
    param: str | None = None
    retry_after: float = 0.0


class Health(Message, frozen=True, tag="health"):
    """State of the engine."""

    id: int
    status: str  # "ok", "degraded" or "no worker is alive"
    workers: int  # alive
    workers_wanted: int
    model: str
    device: str
    requests: int  # accepted and not ended


class Stats(Message, frozen=True, tag="stats"):
    """The scheduler's statistics."""

    id: int
    stats: EngineStats


class Trace(Message, frozen=True, tag="trace"):
    """The steps in the scheduler's ring buffer."""

    id: int
    records: TraceRecords


ServerToClient = Welcome | Update | Failed | Health | Stats | Trace
SERVER_TO_CLIENT: Decoder[ServerToClient] = Decoder(ServerToClient)


def pack(message: object) -> bytes:
    """One message as a frame, length included."""
    payload = encode(message)
    return _LENGTH.pack(len(payload)) + payload


class Deframer:
    """Cuts a byte stream into payloads, however the stream was split on its way."""

    def __init__(self, max_frame: int) -> None:
        """`max_frame`: the longest payload that is taken, in bytes."""
        self._max_frame = max_frame
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Takes bytes and returns the payloads that they complete.

        Raises ProtocolError on a longer frame than allowed; the stream is of no use then.
        """
        self._buffer += data
        buffer, offset, payloads = self._buffer, 0, []
        while len(buffer) - offset >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, offset)
            if length > self._max_frame:
                raise ProtocolError(f"a frame of {length} bytes is longer than the {self._max_frame} that are allowed")
            end = offset + _LENGTH.size + length
            if end > len(buffer):
                break
            payloads.append(bytes(memoryview(buffer)[offset + _LENGTH.size : end]))
            offset = end
        del buffer[:offset]
        return payloads


def request_id(payload: bytes) -> int:
    """The number in a request that did not decode, so that its sender can be told; 0 where there is none."""
    try:
        fields = msgspec.msgpack.decode(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return 0
    match fields:
        case ["submit" | "chat" | "ask", int(number), *_] if number > 0:
            return number
    return 0
