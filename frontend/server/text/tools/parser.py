"""Finds calls in the text of one answer as it grows."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from frontend.server.text.tools.events import Arguments, CallBegun, CallEnded, Content, Event
from frontend.wire import Tool

NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")  # what OpenAI takes, and the dots that some models' own tools have
MOST_SPACE = 256  # characters of space before or between calls that are dropped
LONGEST_HEAD = 1 << 14  # characters of what may still turn out to be a call, or not


class ToolParser(ABC):
    """Splits the text of an answer into content and calls; a state machine over the text that is not yet told apart.

    What it returns for a text, pieces of the same kind put together, does not depend on how the text was cut. It never raises, and
    loses nothing but the marks of calls and the space around them: what begins like a call and has no name is content; when its
    arguments are no JSON, they are shown as they came. Holds back what may become a mark, and the beginning of a call up to its
    arguments.
    """

    marks: tuple[str, ...] = ()  # with which calls begin

    def __init__(self, tools: Sequence[Tool]) -> None:
        self.num_calls = 0
        self._tools = {tool.name: tool for tool in tools}
        self._text = ""  # not yet told apart
        self._events: list[Event] = []
        self._is_open = False  # a call has begun and not ended
        self._called = ""  # the tool of the last call
        self._space: str | None = ""  # held since the beginning or the last call; None: content goes on
        self._mark = ""  # with which the call begins that is looked at
        self._step: Callable[[bool], bool] = self._begin

    def feed(self, text: str, final: bool = False) -> list[Event]:
        """What the next piece of text makes certain. `final`: nothing follows."""
        self._text += text
        while self._text or final:
            if not self._step(final):
                break
        if final:
            if self._is_open:
                self._end_call()
            self._say(self._text)
            if self._space and not self.num_calls:
                self._add(Content(self._space))
            self._text, self._space = "", None
        events, self._events = self._events, []
        return events

    # States: each takes what it can from the beginning of `_text`. True: another state goes on, or the same with what is left.

    def _begin(self, final: bool) -> bool:
        """Nothing was seen yet, or a call has just ended."""
        self._step = self._content
        return True

    def _content(self, final: bool) -> bool:
        text = self._text
        place, mark = min(((place, mark) for mark in self.marks if (place := text.find(mark)) >= 0), default=(-1, ""))
        if place >= 0:
            self._say(text[:place])
            self._text = text[place:]
            self._step = self._call
            self._mark = mark
            return True
        keep = 0 if final else held(text, self.marks)
        self._say(text[: len(text) - keep])
        self._text = text[len(text) - keep :]
        return False

    @abstractmethod
    def _call(self, final: bool) -> bool:
        """The text begins with a mark, or where the format's calls may begin without one."""

    # What states do.

    def _no_call(self, size: int) -> bool:
        """The first characters are content, since no call follows them."""
        self._say(self._text[:size])
        self._text = self._text[size:]
        self._step = self._content
        return True

    def _waits(self, final: bool, size: int) -> bool:
        """A call may come of the text. At the end, or when it has become too long for one, `size` characters are content."""
        if final or len(self._text) > LONGEST_HEAD:
            return self._no_call(size)
        return False

    def _take_end(self, mark: str, final: bool) -> bool:
        """Takes off the mark that closes what just ended, where it comes. False: it may still come."""
        behind = self._text.lstrip()
        if len(self._text) - len(behind) <= MOST_SPACE:
            if behind.startswith(mark):
                self._text = behind[len(mark) :]
            elif mark.startswith(behind) and not final:
                return False
        return True

    def _begin_call(self, name: str) -> None:
        self._space, self._is_open, self._called = "", True, name
        self._events.append(CallBegun(self.num_calls, name))
        self.num_calls += 1

    def _argue(self, text: str) -> None:
        if text:
            self._add(Arguments(self.num_calls - 1, text))

    def _end_call(self) -> None:
        self._is_open = False
        self._events.append(CallEnded(self.num_calls - 1))
        self._step = self._begin

    def _say(self, text: str) -> None:
        if self._space is not None:
            text = self._space + text
            if not text or (text.isspace() and len(text) <= MOST_SPACE):
                self._space = text
                return
            self._space = None
        if text:
            self._add(Content(text))

    def _add(self, event: Content | Arguments) -> None:
        last = self._events[-1] if self._events else None
        if isinstance(event, Content) and isinstance(last, Content):
            self._events[-1] = Content(last.text + event.text)
        elif isinstance(event, Arguments) and isinstance(last, Arguments) and last.call == event.call:
            self._events[-1] = Arguments(last.call, last.text + event.text)
        else:
            self._events.append(event)


def held(text: str, marks: Sequence[str]) -> int:
    """How many characters at the end of a text may begin one of the marks."""
    longest = min(len(text), max(map(len, marks), default=1) - 1)
    for size in range(longest, 0, -1):
        end = text[-size:]
        if any(mark.startswith(end) for mark in marks):
            return size
    return 0
