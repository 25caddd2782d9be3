"""What POST /v1/messages answers, and the events of its streams."""

from typing import Any, Literal, TypeAlias

import msgspec

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class Text(msgspec.Struct, kw_only=True, tag="text"):
    """A part of the answer's text."""

    text: str = ""


class Thoughts(msgspec.Struct, kw_only=True, tag="thinking"):
    """What the model thought before it answered. Nobody signs it."""

    thinking: str = ""
    signature: str = ""


class ToolUse(msgspec.Struct, kw_only=True, tag="tool_use"):
    """A call of a tool. Arguments that are no JSON object come under `INVALID_JSON`."""

    id: str
    name: str
    input: dict[str, Any] = {}


ContentBlock: TypeAlias = Text | Thoughts | ToolUse


class Usage(msgspec.Struct, kw_only=True):
    """Tokens read and written. Those that the prefix cache held are no part of `input_tokens`."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0


class MessageAnswer(msgspec.Struct, kw_only=True):
    """The assistant's message."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[ContentBlock] = []
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: Usage


class MessageEvent(msgspec.Struct, kw_only=True):
    """One event of a stream; which fields it has is up to its type."""

    type: str
    message: MessageAnswer | None = None
    index: int | None = None
    content_block: ContentBlock | None = None
    delta: dict[str, Any] | None = None
    usage: Usage | None = None
    error: dict[str, str] | None = None


class TokenCount(msgspec.Struct, kw_only=True):
    """Tokens of a conversation as the model reads it."""

    input_tokens: int


class AnthropicError(msgspec.Struct, kw_only=True):
    """What went wrong."""

    type: str
    message: str


class AnthropicErrorAnswer(msgspec.Struct, kw_only=True):
    """Every answer whose status is not 2xx."""

    type: Literal["error"]
    error: AnthropicError
