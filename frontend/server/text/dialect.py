"""How one model writes its answers: its thoughts, its calls of tools, and its text."""

import json
from collections.abc import Mapping

from frontend.server.text.thinking import PARSERS, Tags, ThoughtSplitter
from frontend.server.text.thinking import detect as detect_tags
from frontend.server.text.token_bytes import TokenBytes
from frontend.server.text.tokenizer import Tokenizer
from frontend.server.text.tools.calling import Calling
from frontend.server.text.tools.events import Content, Event, Reasoning
from frontend.server.text.tools.formats import FORMATS, GENERIC, ToolFormat
from frontend.server.text.tools.formats import detect as detect_format
from frontend.server.text.tools.grammars import Rules
from protocol.params import Grammar


class Dialect:
    """Found once for a model; what is asked of it is asked for each request."""

    def __init__(self, tokenizer: Tokenizer, tool_parser: str = "auto", reasoning_parser: str = "auto") -> None:
        """`tool_parser`, `reasoning_parser`: names of FORMATS and PARSERS; "auto": as the model's chat template tells; "none", of
        the second: thoughts are left in the text.
        """
        template = tokenizer.chat_template or ""
        added = {token.content: token_id for token_id, token in tokenizer.added_tokens().items()}
        self.takes_tools = "tools" in template
        self.format: ToolFormat = GENERIC
        if tool_parser != "auto":
            self.format = FORMATS[tool_parser]
        elif self.takes_tools:
            self.format = detect_format(template, added)
        self.tags: Tags | None = None
        if reasoning_parser != "none":
            self.tags = detect_tags(template) if reasoning_parser == "auto" else PARSERS[reasoning_parser]
        special = {text: token_id for text, token_id in added.items() if token_id in tokenizer.special_ids}
        tags = () if self.tags is None else (self.tags.opening, self.tags.closing)
        self._tokens: Mapping[str, int] = {text: special[text] for text in (*tags, *self.format.marks) if text in special}
        self._bytes = tokenizer.bytes_showing(special[text] for text in tags if text in special)
        self._bytes_with_calls = tokenizer.bytes_showing(self._tokens.values())

    def token_bytes(self, calling: Calling | None) -> TokenBytes:
        """The bytes of tokens such that a reader sees its marks, and no other special tokens."""
        return self._bytes if calling is None else self._bytes_with_calls

    def reader(self, calling: Calling | None, *, opened: bool = False) -> "AnswerReader":
        """For one output. `opened`: its prompt ends with the tag that opens thoughts."""
        return AnswerReader(self, calling, opened=opened)

    def grammar_for(self, calling: Calling, *, opened: bool = False) -> Grammar | None:
        """What the output has to be, behind the thoughts; None: anything.

        Calls that are required, or of strict tools, are valid by grammar, and so are all of the generic format.
        """
        tools = calling.callable_tools
        wanted = calling.is_required or self.format is GENERIC or any(tool.strict for tool in tools)
        if not wanted:
            return None
        return self.format.grammar_for(
            tools,
            is_required=calling.is_required,
            parallel=calling.parallel and not calling.is_named,
            tokens=self._tokens,
            before=lambda rules: self._thoughts(rules, opened=opened),
        )

    def after_thoughts(self, grammar: Grammar, *, opened: bool = False) -> Grammar:
        """The grammar of an answer, with thoughts before it where the model has them."""
        rules = Rules(self._tokens)
        thoughts = self._thoughts(rules, opened=opened)
        answer = _nested(grammar)
        return grammar if not thoughts or answer is None else rules.grammar(thoughts + rules.rule(answer))

    def _thoughts(self, rules: Rules, *, opened: bool) -> str:
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
            return '%json {"type": "object"}'
        case "json_schema":
            return f"%json {grammar.text}"
        case "choice":
            return " | ".join(json.dumps(choice, ensure_ascii=False) for choice in json.loads(grammar.text))
        case "lark":
            return f"%lark {{\n{grammar.text}\n}}"
        case _:
            return None


class AnswerReader:
    """Tells the parts of one output apart, as its text grows. What it returns, put together, does not depend on how it was cut."""

    def __init__(self, dialect: Dialect, calling: Calling | None, *, opened: bool) -> None:
        self._thoughts = None if dialect.tags is None else ThoughtSplitter(dialect.tags, opened=opened)
        self._calls = None if calling is None else dialect.format.parser(calling.callable_tools)
        self._single = calling is not None and (calling.is_named or not calling.parallel)

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
        if self._single:  # calls beyond the first were not asked for
            found = [event for event in found if isinstance(event, Content | Reasoning) or event.call == 0]
        return events + found
