"""What the Python client and the frontend say to each other, over a Unix stream socket.

A frame is its length (4 bytes, little-endian) and a msgpack array of messages. The client begins with Hello, the frontend answers
with Welcome or Refused; then each side says what it has to say, in as few frames as it likes. Request ids are the client's own,
and rise. Fields are appended with defaults and never reordered; Hello and Refused keep their shape in every version.
"""

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from protocol.codec import Decoder
from protocol.errors import ProtocolError
from protocol.messages import EngineStats, FinishReason, Message, Story, TraceRecords
from protocol.params import SamplingDefaults, SamplingParams

WIRE_VERSION = 1
MAX_FRAME = 1 << 26  # bytes: above any prompt that a context holds, below what one client could hurt the frontend with
_FRAME_SIZE = 1 << 20  # bytes after which a sender begins another frame: small next to the bound, large next to a header
MOST_MESSAGES = 1 << 14  # of a client in a frame: some ten milliseconds' work
_LENGTH_BYTES = 4
WHOLE_CONNECTION = 0  # the request id of a Refused that concerns no single request


# client -> frontend


class Hello(Message, frozen=True, tag="hello"):
    """The first message of a connection."""

    version: int


class TokenPrompt(Message, frozen=True, tag="tokens"):
    """A prompt as packed token ids."""

    token_ids_i32: bytes


class TextPrompt(Message, frozen=True, tag="text"):
    """A prompt as text."""

    text: str
    add_special_tokens: bool = True
    suffix: str | None = None  # what comes behind the answer, for models that can fill in a gap


class Tool(Message, frozen=True):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)  # a JSON schema of an object; empty: it takes none
    strict: bool = False  # whether its arguments have to follow the schema


class ToolCall(Message, frozen=True):
    """A call in an answer. `arguments`: JSON as the model wrote it, an object where the model did as it was told."""

    id: str
    name: str
    arguments: str


class ChatTurn(Message, frozen=True):
    """One message of a conversation. `content`: a text, or the texts of its parts; None only in an answer that has none."""

    role: str
    content: str | list[str] | None
    name: str | None = None
    reasoning: str | None = None  # what went before an answer
    tool_call_id: str | None = None  # whose result it is
    tool_calls: tuple[ToolCall, ...] = ()  # of an answer


class Conversation(Message, frozen=True, tag="conversation"):
    """A prompt that the model's chat template renders."""

    turns: list[ChatTurn]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False  # templates write their own
    enable_thinking: bool | None = None  # None: as the template has it
    tools: tuple[Tool, ...] = ()  # that the model is told of
    thinking: bool | None = None
    reasoning_effort: str | None = None
    tool_choice: str = "auto"  # whether the model calls: auto, none, required, or the name of the function that it has to call
    parallel_tool_calls: bool = True  # whether it may call several at once


# Fields of a conversation that are variables of templates, by the same names; each template knows those of its model.
TEMPLATE_ARGUMENTS = ("enable_thinking", "thinking", "reasoning_effort")

Prompt = TokenPrompt | TextPrompt | Conversation


class ResumedOutput(Message, frozen=True):
    """What a client has of one output: the engine sends what comes behind it."""

    token_ids_i32: bytes
    text: int  # characters
    reasoning: int = 0  # characters
    tool_calls: int = 0


class Resumed(Message, frozen=True):
    """What a client knows of a request that was submitted before, over a connection that ended when the frontend did."""

    prompt_i32: bytes  # as it was accepted; empty: that did not come
    seed: int | None  # that was drawn for it; None: that did not come, or was not needed
    outputs: tuple[ResumedOutput | None, ...]  # None: it has ended


class Submit(Message, frozen=True, tag="submit"):
    """A request: `params.n` outputs of one prompt."""

    request_id: int
    prompt: Prompt
    params: SamplingParams
    stream: bool = True  # False: one Delta per output, when it is complete
    cache_salt: str = ""
    resumed: Resumed | None = None  # it was submitted before: it goes on from there


class Cancel(Message, frozen=True, tag="cancel"):
    """Ends a request. Unknown ids, and those that ended, are ignored."""

    request_id: int


class Ask(Message, frozen=True, tag="ask"):
    """A question about the engine, answered by the report of that name."""

    request_id: int
    what: Literal["health", "stats", "trace", "story"]
    subject: str = ""  # of a story: the request's number, or what its client called it; empty: the latest requests


class Tokenize(Message, frozen=True, tag="tokenize"):
    """Asks for the token ids of a prompt, answered by Tokenized."""

    request_id: int
    prompt: Prompt


class Detokenize(Message, frozen=True, tag="detokenize"):
    """Asks for the text of token ids, answered by Detokenized."""

    request_id: int
    token_ids_i32: bytes


class Embed(Message, frozen=True, tag="embed"):
    """Asks for the embeddings of prompts, answered by Embedded. May be cancelled."""

    request_id: int
    prompts: list[TextPrompt | TokenPrompt]
    dimensions: int | None = None  # fewer numbers than the model has
    truncate_prompt_tokens: int | None = None  # that are left of a longer prompt, from its beginning; -1: all that have room
    priority: int = 0
    cache_salt: str = ""


ClientMessage = Hello | Submit | Cancel | Ask | Tokenize | Detokenize | Embed
CLIENT_MESSAGES: Decoder[list[ClientMessage]] = Decoder(list[ClientMessage])


# frontend -> client


class Welcome(Message, frozen=True, tag="welcome"):
    """Answers Hello."""

    version: int
    models: tuple[str, ...]  # names, the first one shown
    max_model_len: int
    vocab_size: int
    defaults: SamplingDefaults = SamplingDefaults()  # of requests without parameters


class Accepted(Message, frozen=True, tag="accepted"):
    """What a request became, before the first Delta. Not sent where a prompt came as token ids and nothing was changed or drawn."""

    request_id: int
    prompt_i32: bytes  # its token ids; empty: as the client sent them
    max_tokens_clipped: int | None = None  # what was granted, where the context has no room for what was asked
    seed: int | None = None  # that was drawn for a request without one; a request that is resumed needs it


class Logprob(Message, frozen=True, gc=False):
    """Log-probability of one output token, its rank among all (1 = most likely), and the most likely candidates."""

    token_id: int
    logprob: float
    rank: int
    top: list[tuple[int, float]]  # (token id, log-probability), falling


class PromptScored(Message, frozen=True, tag="prompt_scored"):
    """Log-probabilities of the tokens of a prompt but the first, where asked; before the first Delta."""

    request_id: int
    candidates: int  # of the most likely tokens, how many come with each
    logprobs_f32: bytes  # [tokens - 1, 1 + candidates]: of the token, then of the candidates in falling order
    ranks_i32: bytes  # [tokens - 1, 1 + candidates]: rank of the token from 1, then the ids of the candidates


class Delta(Message, frozen=True, tag="delta", gc=False):
    """What came of one output since its last Delta. The one with a finish reason is the last."""

    request_id: int
    index: int  # which of the `n` outputs
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    num_cached_tokens: int = 0  # of the prompt; the same in each delta of an output
    logprobs: tuple[Logprob, ...] = ()
    message: str = ""  # why, when the reason is "error"
    reasoning: str = ""  # of a chat: what the model thought before its answer
    tool_calls: tuple[ToolCall, ...] = ()  # of a chat: calls that are complete by now


Refusal = Literal["malformed", "version", "invalid", "overloaded", "unavailable", "lost", "late"]


class Refused(Message, frozen=True, tag="refused"):
    """A request ends without an answer, or the whole connection with `WHOLE_CONNECTION`."""

    request_id: int
    kind: Refusal
    message: str
    param: str | None = None
    retry_after: float = 0.0  # seconds
    code: str | None = None  # of an invalid request, where programs know what to do about it


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the engine serves."""

    status: Literal["ok", "degraded", "recovering", "draining"]  # all workers live; some; none; about to end
    workers: int  # live now
    workers_wanted: int
    model: str
    device: str
    max_model_len: int
    queue_depth: int
    requests: int  # accepted and not ended


class HealthReport(Message, frozen=True, tag="health"):
    """Answers Ask("health")."""

    request_id: int
    health: Health


class StatsReport(Message, frozen=True, tag="stats_report"):
    """Answers Ask("stats")."""

    request_id: int
    stats: EngineStats


class TraceReport(Message, frozen=True, tag="trace_report"):
    """Answers Ask("trace")."""

    request_id: int
    records: TraceRecords
    answered_i64: bytes  # rows (worker, step id, nanoseconds): when the tokens of a step reached the frontend


class StoryReport(Message, frozen=True, tag="story_report"):
    """Answers Ask("story")."""

    request_id: int
    stories: tuple[Story, ...]  # of the latest requests that the subject may mean, oldest first


class Tokenized(Message, frozen=True, tag="tokenized"):
    """Answers Tokenize."""

    request_id: int
    token_ids_i32: bytes


class Detokenized(Message, frozen=True, tag="detokenized"):
    """Answers Detokenize."""

    request_id: int
    text: str


class Embedded(Message, frozen=True, tag="embedded"):
    """Answers Embed."""

    request_id: int
    embeddings_f32: bytes  # [prompts, dimensions]
    dimensions: int


Report = HealthReport | StatsReport | TraceReport | StoryReport | Tokenized | Detokenized | Embedded
ServerMessage = Welcome | Accepted | PromptScored | Delta | Refused | Report
SERVER_MESSAGES: Decoder[list[ServerMessage]] = Decoder(list[ServerMessage])


# framing


def frames(encoded: Iterable[bytes]) -> bytes:
    """Encoded messages, in order, as one or more frames."""
    parts: list[bytes] = []
    group: list[bytes] = []
    size = 0
    for message in encoded:
        # Before a large one, so that one that is too large is refused alone.
        if group and (size + len(message) > _FRAME_SIZE or len(group) == MOST_MESSAGES):
            parts += (_head(len(group), size), *group)
            group, size = [], 0
        group.append(message)
        size += len(message)
        if size >= _FRAME_SIZE:
            parts += (_head(len(group), size), *group)
            group, size = [], 0
    if group:
        parts += (_head(len(group), size), *group)
    return b"".join(parts)


def _head(count: int, size: int) -> bytes:
    array = b"\xdd" + count.to_bytes(4, "big")  # msgpack: an array of up to 2^32 - 1 items
    return (size + len(array)).to_bytes(_LENGTH_BYTES, "little") + array


class FrameReader:
    """Cuts a byte stream into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that `data` completes. Raises ProtocolError when one is longer than MAX_FRAME: the stream is then useless."""
        self._buffer += data
        complete: list[bytes] = []
        start, end = 0, len(self._buffer)
        while end - start >= _LENGTH_BYTES:
            length = int.from_bytes(self._buffer[start : start + _LENGTH_BYTES], "little")
            if length > MAX_FRAME:
                raise ProtocolError(f"a frame of {length} bytes: at most {MAX_FRAME} are allowed")
            stop = start + _LENGTH_BYTES + length
            if stop > end:
                break
            complete.append(bytes(self._buffer[start + _LENGTH_BYTES : stop]))
            start = stop
        if start:
            del self._buffer[:start]
        return complete
