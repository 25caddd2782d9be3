"""gpt-oss's channels (OpenAI's harmony format, 2025): an answer is a row of messages, and the head of each says what it is.

    <|channel|>analysis<|message|>…<|end|>                                thoughts
    <|start|>assistant<|channel|>commentary<|message|>…<|end|>            what it says before it calls
    <|start|>assistant<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}<|call|>
    <|start|>assistant<|channel|>final<|message|>…<|return|>

The prompt ends with `<|start|>assistant`, so the first head lacks that. A recipient may also stand before the channel.
"""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from frontend.server.text.tools.events import Content, Reasoning
from frontend.server.text.tools.grammars import TEXT, Rules, one_of
from frontend.server.text.tools.parser import NAME, ToolParser, held
from frontend.server.text.tools.schemas import schema_of
from frontend.wire import Tool

START, CHANNEL, CONSTRAIN, MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
MARKS = (START, CHANNEL, CONSTRAIN, MESSAGE, END, CALL, RETURN)
SIGN = CHANNEL + "analysis"  # in the text of a template

_NEXT = (START, CHANNEL)  # begin the next message, where the end of this one was forgotten
_LONGEST_HEAD = 512  # characters
# Nothing is given back once it is taken, so that a long text costs no more than its length.
_HEAD = re.compile(
    r"\s*+(?:<\|start\|>\s*+[\w.-]*+\s*+)?(?:to=(?P<first>[^\s<]++)\s*+)?"
    r"(?:<\|channel\|>\s*+(?P<channel>\w*+)\s*+(?:to=(?P<second>[^\s<]++)\s*+)?(?:[\w./-]++\s*+)?(?:<\|constrain\|>\s*+[\w./-]*+\s*+)?)?"
    r"<\|message\|>"
)
_BEGINNINGS = (*MARKS, "to=")
_FUNCTIONS = "functions."
_NO_TOOLS = ("assistant", "user", "system", "developer", "all")
_BETWEEN = {Content: "\n\n", Reasoning: "\n"}  # two messages of the same kind


class _Head(NamedTuple):
    channel: str
    recipient: str
    end: int  # where the message begins


def leaves_open(prompt: str) -> bool:
    """Whether a prompt, or its end, ends within a message, so that the answer goes on in it. Nothing is known of an empty one."""
    last = max(MARKS, key=prompt.rfind)
    return bool(prompt) and (last not in prompt or last == MESSAGE)


class HarmonyParser(ToolParser):
    """See ToolParser; it also tells thoughts. Marks are never shown."""

    marks = (CHANNEL,)

    def __init__(self, tools: Sequence[Tool], *, opened: bool = False, calls: bool = True) -> None:
        """`opened`: the prompt leaves a message open, which is content. `calls`: without, they are content, too."""
        super().__init__(tools)
        self._space = None
        self._calls = calls
        self._kind: type[Content | Reasoning] = Content  # of the message, where it is no call
        self._told: set[type[Content | Reasoning]] = set()  # of messages before this one
        self._is_empty = True  # nothing of this message came
        self._step = self._message if opened else self._head

    def _call(self, final: bool) -> bool:
        """As the base says: here, every message begins so."""
        return self._head(final)

    def _head(self, final: bool) -> bool:
        head = _read_head(self._text)
        if head == "incomplete":
            if not final:
                return False
            if any(mark in self._text for mark in MARKS) or self._text.isspace():  # cut off: nothing of it is text
                self._text = ""
                return False
            head = None
        if head is None:
            return self._no_head()
        self._text = self._text[head.end :]
        name = head.recipient.removeprefix(_FUNCTIONS)
        is_tool = head.recipient != name or (head.recipient not in ("", *_NO_TOOLS) and head.channel != "analysis")
        if self._calls and is_tool and NAME.fullmatch(name):
            self._begin_call(name)
            self._space = None
        self._open(Reasoning if head.channel == "analysis" else Content)
        return True

    def _no_head(self) -> bool:
        """What begins no message is content, without the mark that it begins with."""
        space = len(self._text) - len(self._text.lstrip())
        mark = next((mark for mark in MARKS if self._text.startswith(mark, space)), "")
        if mark and space + len(mark) <= _LONGEST_HEAD:
            self._text = self._text[space + len(mark) :]
        else:
            self._open(Content)
        return True

    def _open(self, kind: type[Content | Reasoning]) -> None:
        self._kind, self._is_empty, self._step = kind, True, self._message

    def _message(self, final: bool) -> bool:
        text = self._text
        place, mark = min(((place, mark) for mark in MARKS if (place := text.find(mark)) >= 0), default=(-1, ""))
        if place < 0:
            size = len(text) - (0 if final else held(text, MARKS))
            self._tell(text[:size])
            self._text = text[size:]
            return False
        self._tell(text[:place])
        self._text = text[place:] if mark in _NEXT else text[place + len(mark) :]
        if mark in (CONSTRAIN, MESSAGE):  # out of place
            return True
        if self._is_open:
            self._end_call()
        elif not self._is_empty:
            self._told.add(self._kind)
        self._step = self._head
        return True

    def _tell(self, text: str) -> None:
        if not text:
            return
        if self._is_open:
            self._is_empty = self._is_empty and text.isspace()
            self._argue(text)
            return
        if self._is_empty and self._kind in self._told:
            text = _BETWEEN[self._kind] + text
        self._is_empty = False
        if self._kind is Content:
            self._add(Content(text))
        else:
            self._events.append(Reasoning(text))

    def _end_call(self) -> None:
        if self._is_empty:
            self._argue("{}")
        super()._end_call()
        self._step = self._head


def _read_head(text: str) -> _Head | Literal["incomplete"] | None:
    """The head that a text begins with; None: it begins with none."""
    text = text[:_LONGEST_HEAD]
    if (match := _HEAD.match(text)) is not None:
        return _Head(match["channel"] or "", match["first"] or match["second"] or "", match.end())
    begins = text.lstrip()
    if len(text) == _LONGEST_HEAD or MESSAGE in text:
        return None
    if any(begins.startswith(one) or one.startswith(begins) for one in _BEGINNINGS):
        return "incomplete"
    return None


# what a model must write


def thoughts(rules: Rules) -> str:
    """An expression for any messages of thoughts, before another message."""
    return f"({_header(rules, 'analysis')} {rules.up_to(END)} {_begin_next(rules)})* "


def text(rules: Rules, expression: str) -> str:
    """An expression for an answer of that form."""
    return f"{_header(rules, 'final')} {expression}"


def required(rules: Rules, tools: Sequence[Tool]) -> str:
    """An expression for one valid call: with it, the answer ends."""
    return one_of([rules.rule(_called(rules, tool)) for tool in tools])


def allowed(rules: Rules, tools: Sequence[Tool]) -> str:
    """An expression for an answer in words, or a valid call, with some words before it."""
    before = rules.rule(f"{_header(rules, 'commentary')} {rules.up_to(END)} {_begin_next(rules)}")
    return f"{before}? {one_of([required(rules, tools), rules.rule(text(rules, TEXT))])}"


def _called(rules: Rules, tool: Tool) -> str:
    head = f"{rules.text(CHANNEL)} {rules.text(f'commentary to={_FUNCTIONS}{tool.name} ')} {rules.text(CONSTRAIN)}"
    return f'{head} "json" {rules.text(MESSAGE)} {rules.json(schema_of(tool))}'


def _header(rules: Rules, channel: str) -> str:
    return f"{rules.text(CHANNEL)} {rules.text(channel)} {rules.text(MESSAGE)}"


def _begin_next(rules: Rules) -> str:
    return f'{rules.text(START)} "assistant"'
