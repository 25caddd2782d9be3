"""Puts a response together from the parts of one output, and tells of each step as an event."""

import secrets
from collections.abc import Sequence
from typing import Any

import msgspec

from frontend.server.api import logprobs
from frontend.server.api.errors import ApiError
from frontend.server.api.jobs import Output
from frontend.server.api.parts import Part, PartWriter
from frontend.server.api.responses.objects import (
    Failure,
    FunctionCall,
    Incomplete,
    Item,
    Message,
    OutputText,
    ReasoningItem,
    ReasoningText,
    ResponseObject,
    Usage,
)
from frontend.server.generation import TextDelta, TextGeneration, TokenLogprob
from frontend.server.text.token_bytes import TokenBytes
from frontend.server.text.tokenizer import Tokenizer
from protocol.messages import FinishReason

_json = msgspec.json.encode
_NAMES = {"text": "output_text", "thoughts": "reasoning_text", "call": "function_call_arguments"}  # of events, by the part


class ResponseWriter(PartWriter):
    """Writes one response, as the events of a stream or whole."""

    def __init__(self, response: ResponseObject, tokenizer: Tokenizer, shown: TokenBytes, *, tells_logprobs: bool) -> None:
        """`response`: with nothing in it yet. `shown`: the bytes of tokens in its text."""
        super().__init__()
        self._response = response
        self._tokenizer = tokenizer
        self._shown = shown
        self._tells_logprobs = tells_logprobs
        self._number = 0  # of the next event
        self._delta = b""  # how the events begin that add to the part being written
        self._logprobs: list[TokenLogprob] = []  # of tokens whose text is not out yet
        self._finish: FinishReason | None = None

    # Events: see there.

    def begin(self) -> bytes:
        """See Events."""
        return self._event("response.created", response=self._response) + self._event(
            "response.in_progress", response=self._response
        )

    def add(self, index: int, generation: TextGeneration, delta: TextDelta) -> bytes:
        """See Events. There is one output."""
        return self._read(delta)

    def end(self, generations: Sequence[TextGeneration]) -> bytes:
        """See Events."""
        events = self._finished(generations[0])
        return events + self._event(f"response.{self._response.status}", response=self._response)

    def fail(self, error: ApiError) -> bytes:
        """See Events."""
        response = self._response
        response.status, response.error = "failed", Failure(message=error.message)
        return self._event("response.failed", response=response)

    def whole(self, generations: Sequence[TextGeneration], outputs: Sequence[Output]) -> bytes:
        """See Answering."""
        (output,) = outputs
        self._read(output)
        self._finished(generations[0])
        return _json(self._response)

    def _read(self, piece: TextDelta | Output) -> bytes:
        self._finish = piece.finish_reason
        self._logprobs += piece.logprobs
        return self._write(piece)

    # PartWriter

    def _begun(self, part: Part) -> bytes:
        """See PartWriter."""
        item: Item
        match part.kind:
            case "text":
                item = Message(id=_id("msg"))
            case "thoughts":
                item = ReasoningItem(id=_id("rs"))
            case "call":
                item = FunctionCall(id=_id("fc"), call_id=_id("call"), name=part.name)
        self._response.output.append(item)
        events = self._event("response.output_item.added", output_index=self._index, item=item)
        if not isinstance(item, FunctionCall):
            content = OutputText() if isinstance(item, Message) else ReasoningText()
            events += self._event("response.content_part.added", **self._place(item), part=content)
            item.content.append(content)  # type: ignore[arg-type]
        name = f"response.{_NAMES[part.kind]}.delta"
        self._delta = f"event: {name}\ndata: ".encode() + _json({"type": name, **self._place(item)})[:-1] + b',"sequence_number":'
        return events

    def _grown(self, part: Part, text: str) -> bytes:
        """See PartWriter."""
        more = b""
        if part.kind == "text":
            entries: Any = []
            if self._tells_logprobs and self._logprobs:
                entries = logprobs.for_chats(self._tokenizer, self._shown, self._logprobs)["content"]
                message = self._response.output[-1]
                assert isinstance(message, Message)
                message.content[0].logprobs += entries
            more = b',"logprobs":' + _json(entries)
        self._logprobs.clear()
        self._number += 1
        return b'%b%d%b,"delta":%b}\n\n' % (self._delta, self._number - 1, more, _json(text))

    def _ended(self, part: Part, text: str, *, is_complete: bool) -> bytes:
        """See PartWriter."""
        item = self._response.output[-1]
        item.status = "completed" if is_complete else "incomplete"
        done, place = f"response.{_NAMES[part.kind]}.done", self._place(item)
        if isinstance(item, FunctionCall):
            item.arguments = text
            events = self._event(done, **place, name=item.name, arguments=text)
        else:
            content = item.content[0]
            content.text = text
            more = {"logprobs": content.logprobs} if isinstance(content, OutputText) else {}
            events = self._event(done, **place, text=text, **more)
            events += self._event("response.content_part.done", **place, part=content)
        return events + self._event("response.output_item.done", output_index=self._index, item=item)

    @property
    def _index(self) -> int:
        return len(self._response.output) - 1

    def _place(self, item: Item) -> dict[str, Any]:
        place = {"item_id": item.id, "output_index": self._index}
        return place if isinstance(item, FunctionCall) else {**place, "content_index": 0}

    def _finished(self, generation: TextGeneration) -> bytes:
        """Nothing follows: what is open is closed, and the response knows how it ended."""
        response, is_complete = self._response, self._finish == "stop"
        events = self._end(is_complete=is_complete)
        response.status = "completed" if is_complete else "incomplete"
        if not is_complete:
            response.incomplete_details = Incomplete()
        prompt, output = generation.num_prompt_tokens, generation.num_output_tokens
        response.usage = Usage(
            input_tokens=prompt,
            input_tokens_details={"cached_tokens": generation.num_cached_tokens, "cache_write_tokens": 0},
            output_tokens=output,
            output_tokens_details={"reasoning_tokens": self._thought_tokens(output)},
            total_tokens=prompt + output,
        )
        return events

    def _event(self, type: str, /, **fields: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return f"event: {type}\ndata: ".encode() + _json({"type": type, "sequence_number": number, **fields}) + b"\n\n"


def _id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(24)}"
