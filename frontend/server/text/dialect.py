"""How one model writes its answers: its thoughts, its calls of tools, and its text."""

import json
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from frontend.errors import InvalidRequest
from frontend.server.text.thinking import PARSERS, Tags, ThoughtSplitter, leaves_open
from frontend.server.text.thinking import detect as detect_tags
from frontend.server.text.token_bytes import TokenBytes
from frontend.server.text.tokenizer import Tokenizer
from frontend.server.text.tools import harmony
from frontend.server.text.tools.calling import Calling
from frontend.server.text.tools.events import Content, Event, Reasoning
from frontend.server.text.tools.formats import FORMATS, GENERIC, HARMONY, ToolFormat
from frontend.server.text.tools.formats import detect as detect_format
from frontend.server.text.tools.grammars import Rules, one_of
from frontend.server.text.tools.harmony import HarmonyParser
from frontend.server.text.tools.parser import ToolParser
from frontend.server.text.tools.schemas import loosened
from frontend.wire import Tool
from protocol.params import Grammar


class Dialect:
    """Found once for a model; what is asked of it is asked for each request."""

    def __init__(
        self, tokenizer: Tokenizer, *, takes_tools: bool, tool_parser: str = "auto", reasoning_parser: str = "auto"
    ) -> None:
        """`takes_tools`: whether the model's chat template does. `tool_parser`, `reasoning_parser`: names of FORMATS and PARSERS;
        "auto": as the template tells; "none", of the second: thoughts are left in the text.
        """
        template = tokenizer.chat_template or ""
        added = {token.content: token_id for token_id, token in tokenizer.added_tokens().items()}
        self.format: ToolFormat = GENERIC
        if tool_parser != "auto":
            self.format = FORMATS[tool_parser]
        elif reasoning_parser == "openai_gptoss" or harmony.SIGN in template:
            self.format = HARMONY
        elif takes_tools:
            self.format = detect_format(template, added)
        # Whether thoughts, text and calls come in channels, which the format's parser tells apart.
        self.channels = self.format is HARMONY
        self.tells_thoughts = reasoning_parser != "none"
        # Whether conversations tell of tools by our own words, since the template has none for this format.
        self.rewrites_tools = self.format is GENERIC or (not takes_tools and self.format.parser is GENERIC.parser)
        self.tags: Tags | None = None
        if self.tells_thoughts and not self.channels:
            self.tags = detect_tags(template) if reasoning_parser == "auto" else PARSERS[reasoning_parser]
        special = {text: token_id for text, token_id in added.items() if token_id in tokenizer.special_ids}
        tags = () if self.tags is None else (self.tags.opening, self.tags.closing)
        self._tokens: Mapping[str, int] = {text: special[text] for text in (*tags, *self.format.marks) if text in special}
        self._bytes = tokenizer.bytes_showing(special[text] for text in tags if text in special)
        self._bytes_with_calls = tokenizer.bytes_showing(self._tokens.values())

    def reading(self, calling: Calling | None, tail: str = "") -> "Reading | None":
        """How the outputs of a request are read; None: they are nothing but text. `tail`: the end of its prompt's text."""
        if self.channels:
            return Reading(self, calling, self._bytes_with_calls, harmony.leaves_open(tail))
        if calling is None and self.tags is None:
            return None
        opened = self.tags is not None and leaves_open(self.tags, tail)
        return Reading(self, calling, self._bytes if calling is None else self._bytes_with_calls, opened)

    def grammar_for(
        self, calling: Calling | None, answer: Grammar | None, *, opened: bool = False, loose: Set[str] = frozenset()
    ) -> Grammar | None:
        """What an output has to be when its text has to be `answer`; None: anything. Thoughts may go before.

        Calls that are required, or of strict tools, are valid by grammar, and so are all of the generic format. `loose`: names of
        tools whose schemas are not followed.
        """
        rules = Rules(self._tokens)
        before = self._thoughts(rules, opened=opened)
        if calling is None:
            nested = _nested(answer) if answer is not None and before else None
            return answer if nested is None else rules.grammar(before + self._text(rules, nested))
        tools = [loosened(tool) if tool.name in loose else tool for tool in calling.callable_tools]
        if calling.is_required:
            return rules.grammar(before + self.format.required(rules, tools, parallel=calling.parallel))
        if answer is not None:
            nested = _nested(answer)
            if nested is None:
                raise InvalidRequest(f"a {answer.kind} cannot be combined with tools", "tools")
            calls = self.format.required(rules, tools, parallel=calling.parallel)
            return rules.grammar(before + one_of([calls, self._text(rules, nested)]))
        if self.format is not GENERIC and not any(tool.strict for tool in tools):
            return None
        free = self.format.allowed(rules, tools, parallel=calling.parallel)
        return None if free is None else rules.grammar(before + free)

    def _text(self, rules: Rules, nested: str) -> str:
        answer = rules.rule(nested)
        return rules.rule(harmony.text(rules, answer)) if self.channels else answer

    def _thoughts(self, rules: Rules, *, opened: bool) -> str:
        if self.channels:
            return "" if opened else harmony.thoughts(rules)
        if self.tags is None:
            return ""
        opening, closing, always = self.tags
        end = rules.rule(f"{rules.up_to(closing)} {_SPACE}")
        if opened or always:
            return f"{end} "
        return f"({rules.text(opening)} {end})? "


_SPACE = r"/[ \n]{0,2}/"


def _nested(grammar: Grammar) -> str | None:
    """A grammar as the body of a rule of another; None: that cannot be."""
    match grammar.kind:
        case "json_object":
            return _json_value({"type": "object"})
        case "json_schema":
            try:
                schema = json.loads(grammar.text)
            except (ValueError, RecursionError):  # who compiles it will say so
                return None
            return _json_value({} if schema is True else schema) if isinstance(schema, dict) or schema is True else None
        case "choice":
            return " | ".join(json.dumps(choice, ensure_ascii=False) for choice in json.loads(grammar.text))
        case "lark":
            return f"%lark {{\n{grammar.text}\n}}"
        case _:
            return None


@dataclass(frozen=True, slots=True)
class Reading:
    """How the outputs of one request are read."""

    dialect: Dialect
    calling: Calling | None
    token_bytes: TokenBytes  # that show the marks, and no other special tokens
    opened: bool  # the prompt ends with the tag that opens thoughts, or within a message of channels

    @property
    def tools(self) -> list[Tool]:
        """Those that may be called."""
        return [] if self.calling is None else self.calling.callable_tools

    def grammar_for(self, answer: Grammar | None, loose: Set[str] = frozenset()) -> Grammar | None:
        """See Dialect."""
        return self.dialect.grammar_for(self.calling, answer, opened=self.opened, loose=loose)

    def reader(self) -> "AnswerReader":
        """For one output."""
        return AnswerReader(self.dialect, self.calling, opened=self.opened)


def _json_value(schema: dict[str, Any]) -> str:
    style = {"whitespace_pattern": r"( |\n[ \t]{0,40})?", "lenient": False}  # as of a schema by itself
    return f"%json {json.dumps({**schema, 'x-guidance': style})}"


class AnswerReader:
    """Tells the parts of one output apart, as its text grows. What it returns, put together, does not depend on how it was cut."""

    def __init__(self, dialect: Dialect, calling: Calling | None, *, opened: bool) -> None:
        """`opened`: see Reading."""
        self._thoughts = None if dialect.tags is None else ThoughtSplitter(dialect.tags, opened=opened)
        self._calls: ToolParser | None = None
        if dialect.channels:
            self._calls = HarmonyParser([] if calling is None else calling.callable_tools, opened=opened, calls=calling is not None)
        elif calling is not None:
            self._calls = dialect.format.parser(calling.callable_tools)
        self._tells_thoughts = dialect.tells_thoughts
        self._single = calling is not None and not calling.parallel

    @property
    def num_calls(self) -> int:
        """How many calls have begun."""
        if self._calls is None:
            return 0
        return min(self._calls.num_calls, 1) if self._single else self._calls.num_calls

    def feed(self, text: str, final: bool = False) -> list[Event]:
        """What the next piece of text makes certain. `final`: nothing follows."""
        events: list[Event] = []
        if self._thoughts is not None:
            thoughts, text = self._thoughts.feed(text, final)
            if thoughts:
                events.append(Reasoning(thoughts))
        if self._calls is None:
            if text:
                events.append(Content(text))
            return events
        found = self._calls.feed(text, final)
        if not self._tells_thoughts:
            found = [Content(event.text) if isinstance(event, Reasoning) else event for event in found]
        if self._single:  # calls beyond the first were not asked for
            found = [event for event in found if isinstance(event, Content | Reasoning) or event.call == 0]
        return events + found
