"""What the text of an answer is made of."""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias


class Reasoning(NamedTuple):
    """A piece of what the model thought before its answer."""

    text: str


class Content(NamedTuple):
    """A piece of the answer's text."""

    text: str


class CallBegun(NamedTuple):
    """The model calls a tool. `call`: which one of the answer, from 0."""

    call: int
    name: str


class Arguments(NamedTuple):
    """A piece of the JSON text of a call's arguments."""

    call: int
    text: str


class CallEnded(NamedTuple):
    """A call's arguments are complete, or as complete as they get."""

    call: int


Event: TypeAlias = Reasoning | Content | CallBegun | Arguments | CallEnded


class Told(NamedTuple):
    """A whole answer."""

    reasoning: str
    content: str
    calls: list[tuple[str, str]]  # (name, arguments)


def put_together(events: Sequence[Event]) -> Told:
    """What the events of one answer, all of them, make together."""
    reasoning, content = [], []
    names: list[str] = []
    arguments: list[list[str]] = []
    for event in events:
        match event:
            case Reasoning(text):
                reasoning.append(text)
            case Content(text):
                content.append(text)
            case CallBegun(_, name):
                names.append(name)
                arguments.append([])
            case Arguments(call, text):
                arguments[call].append(text)
    calls = [(name, "".join(pieces)) for name, pieces in zip(names, arguments, strict=True)]
    return Told("".join(reasoning), "".join(content), calls)
