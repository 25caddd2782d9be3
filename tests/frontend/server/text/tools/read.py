"""Reads a text with a parser, whole or in pieces."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from frontend.server.text.tools.events import Arguments, CallBegun, CallEnded, Content, Event
from frontend.server.text.tools.parser import ToolParser
from frontend.wire import Tool

TOOLS = (
    Tool("now", "What time it is"),
    Tool(
        "weather",
        "The weather somewhere",
        {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "unit": {"type": "string", "enum": ["c", "f"]},
                "near": {"$ref": "#/$defs/Place"},
            },
            "required": ["city"],
            "$defs": {"Place": {"type": "object", "properties": {"x": {"type": "number"}, "y": {"type": "number"}}}},
        },
    ),
    Tool("add", None, {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}),
)


class Answer(NamedTuple):
    content: str
    calls: list[tuple[str, str]]


def pieces_of(text: str, cuts: Sequence[int]) -> list[str]:
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[start:end] for start, end in pairwise(places)]


def read(parser: Callable[[Sequence[Tool]], ToolParser], pieces: Sequence[str]) -> Answer:
    reader = parser(TOOLS)
    events = [event for piece in pieces[:-1] for event in reader.feed(piece)] + reader.feed(pieces[-1], final=True)
    return put_together(events)


def put_together(events: Sequence[Event]) -> Answer:
    """Checks the order of events on the way."""
    content, is_open = "", False
    names: list[str] = []
    arguments: list[str] = []
    for event in events:
        match event:
            case Content(text):
                assert text
                assert not is_open
                content += text
            case CallBegun(call, name):
                assert not is_open
                assert call == len(names)
                is_open = True
                names.append(name)
                arguments.append("")
            case Arguments(call, text):
                assert text
                assert is_open
                assert call == len(names) - 1
                arguments[-1] += text
            case CallEnded(call):
                assert is_open
                assert call == len(names) - 1
                is_open = False
    assert not is_open
    return Answer(content, list(zip(names, arguments, strict=True)))
