"""Writes one message, as the events of a stream or whole."""

import secrets
from collections.abc import Sequence
from typing import Any

import msgspec

from frontend.server.api.anthropic.objects import ContentBlock, MessageAnswer, StopReason, Text, Thoughts, ToolUse, Usage
from frontend.server.api.errors import ApiError
from frontend.server.api.jobs import Output
from frontend.server.api.parts import Part, PartWriter
from frontend.server.generation import TextDelta, TextGeneration
from protocol.messages import FinishReason

_json = msgspec.json.encode


class MessageWriter(PartWriter):
    """Of one output."""

    def __init__(self, generation: TextGeneration, model: str) -> None:
        super().__init__()
        self._message = MessageAnswer(id=f"msg_{secrets.token_hex(12)}", model=model, usage=_usage(generation))
        self._called = False
        self._stop_sequence: str | None = None
        self._finish: FinishReason | None = None
        self._delta = (b"", b"")  # what is before and behind a piece of the part being written

    # Events: see there.

    def begin(self) -> bytes:
        """See Events."""
        return _event("message_start", message=self._message)

    def add(self, index: int, generation: TextGeneration, delta: TextDelta) -> bytes:
        """See Events. There is one output."""
        return self._read(delta)

    def end(self, generations: Sequence[TextGeneration]) -> bytes:
        """See Events."""
        events, message = self._finished(generations[0]), self._message
        delta = {"stop_reason": message.stop_reason, "stop_sequence": message.stop_sequence}
        return events + _event("message_delta", delta=delta, usage=message.usage) + _event("message_stop")

    def fail(self, error: ApiError) -> bytes:
        """See Events."""
        return b"event: error\ndata: " + error.body(anthropic=True) + b"\n\n"

    def whole(self, generations: Sequence[TextGeneration], outputs: Sequence[Output]) -> bytes:
        """See Answering."""
        (output,) = outputs
        self._read(output)
        self._finished(generations[0])
        return _json(self._message)

    def _read(self, piece: TextDelta | Output) -> bytes:
        self._finish = piece.finish_reason
        self._stop_sequence = piece.stop_reason if isinstance(piece.stop_reason, str) else None
        return self._write(piece)

    def _finished(self, generation: TextGeneration) -> bytes:
        """Nothing follows: what is open is closed, and the message knows why it ended."""
        message = self._message
        events = self._end(is_complete=self._finish == "stop")
        reason: StopReason = "max_tokens" if self._finish != "stop" else "end_turn"
        if self._stop_sequence is not None:
            reason, message.stop_sequence = "stop_sequence", self._stop_sequence
        elif self._called and reason == "end_turn":
            reason = "tool_use"
        message.stop_reason = reason
        message.usage = _usage(generation)
        return events

    # PartWriter

    def _begun(self, part: Part) -> bytes:
        index, block = len(self._message.content), _block(part)
        self._called = self._called or part.kind == "call"
        kind, key = _DELTAS[part.kind]
        head = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":'
        self._delta = head % (index, kind, key), b"}}\n\n"
        started = _event("content_block_start", index=index, content_block=block)
        self._message.content.append(block)
        return started + (_PING if index == 0 else b"")

    def _grown(self, part: Part, text: str) -> bytes:
        before, behind = self._delta
        return before + _json(text) + behind

    def _ended(self, part: Part, text: str, *, is_complete: bool) -> bytes:
        block = self._message.content[-1]
        match block:
            case Text():
                block.text = text
            case Thoughts():
                block.thinking = text
            case ToolUse():
                block.input = _arguments(text)
        return _event("content_block_stop", index=len(self._message.content) - 1)


_DELTAS = {
    "text": (b"text_delta", b"text"),
    "thoughts": (b"thinking_delta", b"thinking"),
    "call": (b"input_json_delta", b"partial_json"),
}


def _block(part: Part) -> ContentBlock:
    match part.kind:
        case "text":
            return Text()
        case "thoughts":
            return Thoughts()
        case "call":
            return ToolUse(id=f"toolu_{secrets.token_hex(12)}", name=part.name)


def _arguments(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return {"INVALID_JSON": text}


def _usage(generation: TextGeneration) -> Usage:
    cached = generation.num_cached_tokens
    tokens = generation.num_prompt_tokens - cached
    return Usage(input_tokens=tokens, output_tokens=generation.num_output_tokens, cache_read_input_tokens=cached)


def _event(type: str, **fields: Any) -> bytes:
    return f"event: {type}\ndata: ".encode() + _json({"type": type, **fields}) + b"\n\n"


_PING = _event("ping")
