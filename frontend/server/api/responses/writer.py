"""Puts a response together from the parts of one output, and tells of each step as an event."""

import secrets
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from frontend.server.api import logprobs
from frontend.server.api.errors import ApiError
from frontend.server.api.jobs import Output
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
from frontend.server.text.tools.events import Arguments, CallBegun, CallEnded, Content, Event, Reasoning
from protocol.messages import FinishReason

_json = msgspec.json.encode


class Reader(Protocol):
    """Tells the parts of an output apart, as its text grows."""

    def feed(self, text: str, final: bool = False) -> list[Event]:
        """What the next piece of text makes certain. `final`: nothing follows."""


class ResponseWriter:
    """Writes one response, as the events of a stream or whole."""

    def __init__(
        self, response: ResponseObject, reader: Reader, tokenizer: Tokenizer, shown: TokenBytes, *, tells_logprobs: bool
    ) -> None:
        """`response`: with nothing in it yet. `shown`: the bytes of tokens in its text."""
        self._response = response
        self._reader = reader
        self._tokenizer = tokenizer
        self._shown = shown
        self._tells_logprobs = tells_logprobs
        self._number = 0  # of the next event
        self._item: Item | None = None  # that is being written; it is the last of the output
        self._pieces: list[str] = []  # of its text
        self._delta = b""  # how the events begin that add to it
        self._logprobs: list[TokenLogprob] = []  # of tokens whose text is not out yet
        self._finish: FinishReason | None = None
        self._reasoning_tokens = 0

    # Events: see there.

    def begin(self) -> bytes:
        """See Events."""
        return self._event("response.created", response=self._response) + self._event(
            "response.in_progress", response=self._response
        )

    def add(self, index: int, generation: TextGeneration, delta: TextDelta) -> bytes:
        """See Events. There is one output."""
        self._finish = delta.finish_reason
        return self._read(delta.text, len(delta.token_ids), delta.logprobs)

    def end(self, generations: Sequence[TextGeneration]) -> bytes:
        """See Events."""
        events = self._finished(generations[0])
        return events + self._event(f"response.{self._response.status}", response=self._response)

    def fail(self, error: ApiError) -> bytes:
        """See Events."""
        response = self._response
        response.status, response.error = "failed", Failure(code=error.code or "server_error", message=error.message)
        return self._event("response.failed", response=response)

    def whole(self, generations: Sequence[TextGeneration], outputs: Sequence[Output]) -> bytes:
        """See Answering."""
        (output,) = outputs
        self._finish = output.finish_reason
        self._read(output.text, len(output.token_ids), output.logprobs)
        self._finished(generations[0])
        return _json(self._response)

    def _read(self, text: str, num_tokens: int, tokens: list[TokenLogprob]) -> bytes:
        found = self._reader.feed(text, self._finish is not None)
        self._logprobs += tokens
        if found and all(isinstance(event, Reasoning) for event in found):
            self._reasoning_tokens += num_tokens
        return b"".join([self._take(event) for event in found])

    def _take(self, event: Event) -> bytes:
        match event:
            case Content(text):
                return self._add_text(text)
            case Reasoning(text):
                before = b"" if isinstance(self._item, ReasoningItem) else self._open(ReasoningItem(id=_id("rs")))
                self._logprobs.clear()
                return before + self._add(text)
            case CallBegun(_, name):
                self._logprobs.clear()
                return self._open(FunctionCall(id=_id("fc"), call_id=_id("call"), name=name))
            case Arguments(_, text):
                self._logprobs.clear()
                return self._add(text)
            case CallEnded():
                return self._close()

    def _add_text(self, text: str) -> bytes:
        before = b"" if isinstance(self._item, Message) else self._open(Message(id=_id("msg")))
        entries: Any = []
        if self._tells_logprobs and self._logprobs:
            entries = logprobs.for_chats(self._tokenizer, self._shown, self._logprobs)["content"]
            assert isinstance(self._item, Message)
            self._item.content[0].logprobs += entries
        self._logprobs.clear()
        return before + self._add(text, b',"logprobs":' + _json(entries))

    def _add(self, text: str, more: bytes = b"") -> bytes:
        self._pieces.append(text)
        self._number += 1
        return b'%b%d%b,"delta":%b}\n\n' % (self._delta, self._number - 1, more, _json(text))

    def _open(self, item: Item) -> bytes:
        """Begins an item behind the last, which ends."""
        before = self._close()
        self._item = item
        self._response.output.append(item)
        index = len(self._response.output) - 1
        place: dict[str, Any] = {"item_id": item.id, "output_index": index}
        added = self._event("response.output_item.added", output_index=index, item=item)
        if isinstance(item, FunctionCall):
            name = "response.function_call_arguments.delta"
        else:
            place["content_index"] = 0
            part = OutputText() if isinstance(item, Message) else ReasoningText()
            added += self._event("response.content_part.added", **place, part=part)
            item.content.append(part)  # type: ignore[arg-type]
            name = f"response.{_kind(item)}.delta"
        self._delta = f"event: {name}\ndata: ".encode() + _json({"type": name, **place})[:-1] + b',"sequence_number":'
        return before + added

    def _close(self, *, is_complete: bool = True) -> bytes:
        """Ends the item that is being written."""
        item, text = self._item, "".join(self._pieces)
        self._item, self._pieces = None, []
        if item is None:
            return b""
        item.status = "completed" if is_complete else "incomplete"
        place: dict[str, Any] = {"item_id": item.id, "output_index": len(self._response.output) - 1}
        if isinstance(item, FunctionCall):
            item.arguments = text
            done = self._event("response.function_call_arguments.done", **place, name=item.name, arguments=text)
        else:
            place["content_index"] = 0
            part = item.content[0]
            part.text = text
            more = {"logprobs": part.logprobs} if isinstance(part, OutputText) else {}
            done = self._event(f"response.{_kind(item)}.done", **place, text=text, **more)
            done += self._event("response.content_part.done", **place, part=part)
        return done + self._event("response.output_item.done", output_index=place["output_index"], item=item)

    def _finished(self, generation: TextGeneration) -> bytes:
        """Nothing follows: what is open is closed, and the response knows how it ended."""
        response, is_complete = self._response, self._finish == "stop"
        events = b"" if response.output else self._add_text("")  # an answer without a word is a message all the same
        events += self._close(is_complete=is_complete)
        response.status = "completed" if is_complete else "incomplete"
        if not is_complete:
            response.incomplete_details = Incomplete()
        prompt, output = generation.num_prompt_tokens, generation.num_output_tokens
        response.usage = Usage(
            input_tokens=prompt,
            input_tokens_details={"cached_tokens": generation.num_cached_tokens},
            output_tokens=output,
            output_tokens_details={"reasoning_tokens": self._reasoning_tokens},
            total_tokens=prompt + output,
        )
        return events

    def _event(self, type: str, /, **fields: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return f"event: {type}\ndata: ".encode() + _json({"type": type, "sequence_number": number, **fields}) + b"\n\n"


def _kind(item: Message | ReasoningItem) -> str:
    return "output_text" if isinstance(item, Message) else "reasoning_text"


def _id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(24)}"
