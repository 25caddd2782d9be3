"""Calls of tools in the answer to a Python client: told when they are complete, each as a whole."""

import secrets
from collections.abc import Sequence
from typing import NamedTuple

from frontend.server.text.tools.events import Arguments, CallBegun, CallEnded, Content, Event, Reasoning
from frontend.wire import ToolCall


class Piece(NamedTuple):
    """What some events add to an output."""

    text: str
    reasoning: str
    calls: list[ToolCall]


class CallsInMaking:
    """Those of one output."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}  # of calls that have begun and not ended
        self._arguments: dict[int, list[str]] = {}

    def take(self, events: Sequence[Event]) -> Piece:
        """Takes in the next events of the output."""
        text: list[str] = []
        reasoning: list[str] = []
        calls: list[ToolCall] = []
        for event in events:
            match event:
                case Content(piece):
                    text.append(piece)
                case Reasoning(piece):
                    reasoning.append(piece)
                case CallBegun(call, name):
                    self._names[call], self._arguments[call] = name, []
                case Arguments(call, piece):
                    self._arguments[call].append(piece)
                case CallEnded(call):
                    arguments = "".join(self._arguments.pop(call))
                    calls.append(ToolCall(f"call_{secrets.token_hex(12)}", self._names.pop(call), arguments))
        return Piece("".join(text), "".join(reasoning), calls)
