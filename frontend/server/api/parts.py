"""Puts an answer together of parts: texts, thoughts and calls, one after the other. How each is written is up to the route."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

from frontend.server.api.jobs import Output
from frontend.server.generation import TextDelta
from frontend.server.text.tools.events import Arguments, CallBegun, CallEnded, Content, Event, Reasoning


@dataclass(slots=True)
class Part:
    """The part that is being written. `name`: of the tool that is called."""

    kind: Literal["text", "thoughts", "call"]
    name: str = ""
    pieces: list[str] = field(default_factory=list)


class PartWriter(ABC):
    """Follows what one output consists of. Each method returns what is to be sent: whole events, or nothing."""

    def __init__(self) -> None:
        self._part: Part | None = None
        self._num_parts = 0
        self._characters = {"text": 0, "thoughts": 0, "call": 0}  # of each kind of part

    @abstractmethod
    def _begun(self, part: Part) -> bytes:
        """Another part begins. It is the last of the answer, number `_num_parts - 1`."""

    @abstractmethod
    def _grown(self, part: Part, text: str) -> bytes:
        """The part goes on."""

    @abstractmethod
    def _ended(self, part: Part, text: str, *, is_complete: bool) -> bytes:
        """The part ends here. `text`: all of it."""

    def _write(self, piece: TextDelta | Output) -> bytes:
        """The output goes on."""
        events = piece.events
        if events is None:
            events = [Content(piece.text)] if piece.text else []
        return b"".join([self._take(event) for event in events])

    def _end(self, *, is_complete: bool) -> bytes:
        """Nothing follows. An answer without a word is a text all the same."""
        before = b"" if self._num_parts else self._open(Part("text"))
        return before + self._close(is_complete=is_complete)

    def _thought_tokens(self, num_tokens: int) -> int:
        """How many of the output's tokens were thoughts, by their part of its characters."""
        return round(num_tokens * self._characters["thoughts"] / max(1, sum(self._characters.values())))

    def _take(self, event: Event) -> bytes:
        match event:
            case Content(text):
                return self._continue("text", text)
            case Reasoning(text):
                return self._continue("thoughts", text)
            case CallBegun(_, name):
                return self._open(Part("call", name))
            case Arguments(_, text):
                return self._grow(text)
            case CallEnded():
                return self._close(is_complete=True)

    def _continue(self, kind: Literal["text", "thoughts"], text: str) -> bytes:
        before = b"" if self._part is not None and self._part.kind == kind else self._open(Part(kind))
        return before + self._grow(text)

    def _open(self, part: Part) -> bytes:
        before = self._close(is_complete=True)
        self._part = part
        self._num_parts += 1
        return before + self._begun(part)

    def _grow(self, text: str) -> bytes:
        part = self._part
        assert part is not None, "arguments belong to a call"
        part.pieces.append(text)
        self._characters[part.kind] += len(text)
        return self._grown(part, text)

    def _close(self, *, is_complete: bool) -> bytes:
        part, self._part = self._part, None
        return b"" if part is None else self._ended(part, "".join(part.pieces), is_complete=is_complete)
