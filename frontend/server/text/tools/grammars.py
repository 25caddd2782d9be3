"""Grammars of calls, in llguidance's dialect of Lark: what a model must write so that a format's parser finds valid calls."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from frontend.server.text.tools.schemas import schema_of
from frontend.wire import Tool
from protocol.params import Grammar

TEXT = "TEXT"
_TEXT_RULE = r"TEXT: /(.|\n)*/"


class Unit(NamedTuple):
    """How a format writes one call, or a list of them: Lark expressions."""

    mark: str  # the text with which it begins and nothing else does; empty: none
    body: str  # what follows the mark
    separator: str | None  # between two of them; None: there is but one


class Rules:
    """The rules of one grammar."""

    def __init__(self, tokens: Mapping[str, int]) -> None:
        """`tokens`: texts that are special tokens of the model."""
        self._tokens = tokens
        self._lines: list[str] = []
        self._count = 0

    def is_token(self, text: str) -> bool:
        """Whether a text is a special token of the model."""
        return text in self._tokens

    def text(self, text: str) -> str:
        """An expression for a text; where it is a special token, that token."""
        token_id = self._tokens.get(text)
        return json.dumps(text, ensure_ascii=False) if token_id is None else f"<[{token_id}]>"

    def up_to(self, mark: str) -> str:
        """An expression for any text and the mark behind it."""
        if mark in self._tokens:
            return f"{TEXT} {self.text(mark)}"
        return self.rule(f"{TEXT} {self.text(mark)}", lazy=True)

    def json(self, schema: dict[str, Any]) -> str:
        """An expression for JSON that follows a schema."""
        return self.rule(f"%json {json.dumps(schema)}")

    def rule(self, body: str, *, lazy: bool = False) -> str:
        """A rule of its own, by its name. `lazy`: it ends where it can."""
        self._count += 1
        name = f"r{self._count}"
        self._lines.append(f"{name}{'[lazy]' if lazy else ''}: {body}")
        return name

    def grammar(self, start: str) -> Grammar:
        """The whole."""
        return Grammar("lark", "\n".join(["%llguidance {}", f"start: {start}", *self._lines, _TEXT_RULE, ""]))


def one_of(expressions: Sequence[str]) -> str:
    """Any of several expressions."""
    return expressions[0] if len(expressions) == 1 else f"({' | '.join(expressions)})"


def repeated(expression: str, separator: str, parallel: bool) -> str:
    """One, or several with a separator between them."""
    if not parallel:
        return expression
    between = f"{json.dumps(separator)} " if separator else ""
    return f"{expression} ({between}{expression})*"


def json_call(rules: Rules, tool: Tool, arguments: str) -> str:
    """{"name": …, ARGUMENTS: {…}}."""
    head = rules.text(f'{{"name": {json.dumps(tool.name)}, "{arguments}": ')
    return f'{head} {rules.json(schema_of(tool))} "}}"'


def required(rules: Rules, unit: Unit, parallel: bool) -> str:
    """Calls and nothing else."""
    mark = f"{rules.text(unit.mark)} " if unit.mark else ""
    call = rules.rule(mark + unit.body)
    return call if unit.separator is None else rules.rule(repeated(call, unit.separator, parallel))


def allowed(rules: Rules, unit: Unit, parallel: bool) -> str:
    """Any text with calls in it. The unit has a mark."""
    call = rules.rule(f"{rules.up_to(unit.mark)} {unit.body}")
    several = "*" if parallel and unit.separator is not None else "?"
    return f"{call}{several} {TEXT}"
