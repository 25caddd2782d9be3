"""What the frontend and a process that renders say to each other: JSON's values in, a text out.

A frame is its length (4 bytes, little-endian) and one message as JSON, which holds whatever a client's JSON held.
"""

from typing import Any

import msgspec

from frontend.server.text.fences import Messages

LENGTH_BYTES = 4


class Load(msgspec.Struct, frozen=True, tag="load"):
    """The first message to a process: its template, and what it may take. Answered by Loaded."""

    source: str
    special_tokens: dict[str, str]
    processor_seconds: float  # of each message
    memory: int  # bytes, beside what the process takes before it has loaded anything


class Render(msgspec.Struct, frozen=True, tag="render"):
    """A conversation. `options`: the keyword arguments of `ChatTemplate.render`. Answered by Rendered or Refused."""

    messages: Messages
    options: dict[str, Any]


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """The template is compiled, or `error` says why not."""

    error: str = ""
    takes_tools: bool = False  # see ChatTemplate


class Rendered(msgspec.Struct, frozen=True, tag="rendered"):
    """The text."""

    text: str


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The fields of an InvalidRequest."""

    message: str
    param: str | None = None
    code: str | None = None


class OutOfMemory(msgspec.Struct, frozen=True, tag="memory"):
    """The template needs more memory than it may have."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """A fault of ours, which the process has said on standard error."""


Question = Load | Render
Answer = Loaded | Rendered | Refused | OutOfMemory | Failed

QUESTIONS: msgspec.json.Decoder[Question] = msgspec.json.Decoder(Question)
ANSWERS: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)


def frame(message: Question | Answer) -> bytes:
    """The bytes of a message. Raises UnicodeEncodeError on texts with lone surrogates."""
    data = msgspec.json.encode(message)
    return len(data).to_bytes(LENGTH_BYTES, "little") + data
