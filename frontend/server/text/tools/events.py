"""What the text of an answer is made of."""

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
