"""Calls as JSON objects: {"name": …, "arguments": {…}}."""

import json
import re
from typing import Literal, NamedTuple

from frontend.server.text.tools.parser import LONGEST_HEAD, NAME, ToolParser

_SPACE = re.compile(r"[ \t\r\n]*")
_SCALAR = re.compile(r"[^\s,}\]]+")
_SHORT = 256  # characters: nearly all heads are complete by then
_NAMES = ("name", "function")  # by which models call the name of a tool; some write "type" beside it
_ARGUMENTS = ("arguments", "parameters")


class Nesting:
    """Finds the end of an object or array of JSON in a text that comes in pieces. Reads brackets and strings, and nothing else."""

    __slots__ = ("_escaped", "_in_string", "depth")

    def __init__(self, depth: int = 0) -> None:
        self.depth = depth
        self._in_string = False
        self._escaped = False

    def end(self, text: str, start: int = 0) -> tuple[int, bool]:
        """Where the value ends, or the text does; and whether the value does. It also ends before a `<` outside of its strings,
        which JSON does not have: there a broken value is over.
        """
        place = start
        if self._escaped and place < len(text):
            self._escaped = False
            place += 1
        while (match := (_IN_STRING if self._in_string else _OUTSIDE).search(text, place)) is not None:
            place = match.end()
            match match[0]:
                case '"':
                    self._in_string = not self._in_string
                case "\\":
                    if place == len(text):
                        self._escaped = True
                    place += 1
                case "{" | "[":
                    self.depth += 1
                case "<":
                    return place - 1, True
                case _:
                    self.depth -= 1
                    if self.depth <= 0:
                        return place, True
        return len(text), False


_IN_STRING = re.compile(r'["\\]')
_OUTSIDE = re.compile(r'["{}\[\]<]')


class Head(NamedTuple):
    """A call up to its arguments. `start`: where they begin, or where the text goes on when they came before."""

    name: str
    start: int
    arguments: str | None  # the whole of them, as they were written


def read_head(text: str, start: int) -> Head | Literal["incomplete"] | None:
    """The head of the call that begins at `start`; None: it is no call."""
    name: str | None = None
    arguments: str | None = None
    place = _skip(text, start)
    if place == len(text):
        return "incomplete"
    if text[place] != "{":
        return None
    place = _skip(text, place + 1)
    while place < len(text):
        if text[place] == "}":
            return None if name is None else Head(name, place, "{}" if arguments is None else arguments)
        if (key := _string(text, place)) is None or isinstance(key, int):
            return "incomplete" if key is not None else None
        place = _skip(text, key.end)
        if place < len(text) and text[place] != ":":
            return None
        place = _skip(text, place + 1)
        if place >= len(text):
            break
        if key.value not in (*_NAMES, *_ARGUMENTS, "type", "id"):
            return None
        if key.value in _ARGUMENTS and name is not None:
            return Head(name, place, None)
        end = _value_end(text, place)
        if end is None:
            return "incomplete"
        if key.value in _ARGUMENTS:
            arguments = text[place:end]
        elif key.value in _NAMES:
            value = _string(text, place)
            if value is None or isinstance(value, int) or NAME.fullmatch(value.value) is None:
                return None
            name = value.value
        place = _skip(text, end)
        if place < len(text) and text[place] == ",":
            place = _skip(text, place + 1)
        elif place < len(text) and text[place] != "}":
            return None
        if name is not None and arguments is not None and place < len(text):
            return Head(name, place, arguments)
    return "incomplete"


class JsonCalls(ToolParser):
    """The states of a call that is a JSON object. A format says what goes before and what comes after."""

    _lead = 0  # characters before the object
    _any_name = True  # whether the model may call what it was not offered: its mark says that it calls
    _nesting = Nesting()
    _look = 0  # what is incomplete is looked at again when the text is so long

    def _call(self, final: bool) -> bool:
        self._lead = len(self._mark)
        self._step = self._head
        return True

    def _head(self, final: bool) -> bool:
        if len(self._text) < self._look and not final:
            return False
        head = read_head(self._text, self._lead)
        self._look = 0
        if head == "incomplete":
            if self._waits(final, max(self._lead, 1)):
                return True
            self._look = _next_look(len(self._text))
            return False
        if head is None or head.start > LONGEST_HEAD or not (self._any_name or head.name in self._tools):
            return self._no_call(max(self._lead, 1))
        self._begin_call(head.name)
        self._text = self._text[head.start :]
        self._nesting = Nesting()
        if head.arguments is not None:
            self._argue(as_object(head.arguments))
            return self._enter_tail()
        self._step = self._arguments if self._text[0] in "{[" else self._whole_arguments
        return True

    def _arguments(self, final: bool) -> bool:
        end, is_over = self._nesting.end(self._text)
        self._argue(self._text[:end])
        self._text = self._text[end:]
        return self._enter_tail() if is_over else False

    def _whole_arguments(self, final: bool) -> bool:
        """A value that is no object: null, or the object in a string."""
        if len(self._text) < self._look and not final:
            return False
        end = _value_end(self._text, 0)
        self._look = 0
        if end is None:
            if not final:
                self._look = _next_look(len(self._text))
                return False
            end = len(self._text)
        self._argue(as_object(self._text[:end]))
        self._text = self._text[end:]
        return self._enter_tail()

    def _enter_tail(self) -> bool:
        self._nesting = Nesting(depth=1)
        self._step = self._tail
        return True

    def _tail(self, final: bool) -> bool:
        """What is left of the object says nothing."""
        end, is_over = self._nesting.end(self._text)
        self._text = self._text[end:]
        if not is_over:
            return False
        self._end_call()
        return True


def _next_look(size: int) -> int:
    """For a text that is incomplete at that length. It is read from its beginning each time, so a long one is left to grow by an
    eighth: all looks together take no more than some nine readings of the whole."""
    return size + 1 if size < _SHORT else size + size // 8


def as_object(value: str) -> str:
    """Arguments that were written as null or as a string of JSON, as the JSON that they mean."""
    if value == "null":
        return "{}"
    if value.startswith('"'):
        try:
            text = json.loads(value, strict=False)
        except (ValueError, RecursionError):
            return value
        return text if isinstance(text, str) and text.lstrip().startswith("{") else value
    return value


class _String(NamedTuple):
    value: str
    end: int


def _string(text: str, place: int) -> _String | int | None:
    """The string that begins there; 0: it is not complete; None: it is none."""
    if text[place] != '"':
        return None
    end = _string_end(text, place)
    if end is None:
        return 0
    try:
        value = json.loads(text[place:end], strict=False)
    except ValueError:
        return None
    return _String(value, end)


def _string_end(text: str, place: int) -> int | None:
    place += 1
    while (match := _IN_STRING.search(text, place)) is not None:
        place = match.end()
        if match[0] == '"':
            return place
        place += 1
    return None


def _value_end(text: str, place: int) -> int | None:
    if text[place] == '"':
        return _string_end(text, place)
    if text[place] in "{[":
        end, is_over = Nesting().end(text, place)
        return end if is_over else None
    match = _SCALAR.match(text, place)
    end = place if match is None else match.end()
    return end if end < len(text) else None


def _skip(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return place if match is None else match.end()
