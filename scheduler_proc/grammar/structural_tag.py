"""Structural tags: free text with marked parts that follow a schema, as calls of tools are written. Translated to Lark.

Two shapes are read. The older one lists `structures` (begin, schema, end) and the `triggers` that announce one of them. The newer
one, under `format`, is a tree: a text, a schema, an expression, a sequence, a choice, a tag around one of them, or several tags.
"""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from scheduler_proc.grammar.errors import GrammarError
from scheduler_proc.grammar.lark import ANY_TEXT, expression, quoted

_DEEPEST = 32  # formats within formats

_KINDS: dict[type[Any], str] = {str: "a text", list: "a list", dict: "an object"}

Spell = Callable[[str], str]  # a text -> Lark that stands for it: strings, and tokens that have no text


def structural_tag_to_lark(text: str, spell: Spell, schema: Callable[[object], str]) -> str:
    """`spell` writes a constant text, `schema` a JSON schema, both as Lark. Raises GrammarError."""
    try:
        tag = msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"the structural tag is no JSON: {error}") from error
    if not isinstance(tag, dict):
        raise GrammarError("a structural tag is a JSON object")
    writer = _Writer(spell, schema)
    start = writer.format(tag["format"], 0) if "format" in tag else writer.triggered(_older(tag), 0)
    return "\n".join([f"start: {start}", *writer.rules, ""])


def _older(tag: dict[str, Any]) -> dict[str, Any]:
    tags = [
        {
            "begin": _get(entry, "begin", str),
            "content": {"type": "json_schema", "json_schema": entry.get("schema", {})},
            "end": _get(entry, "end", str),
        }
        for entry in _get(tag, "structures", list)
    ]
    return {"triggers": _get(tag, "triggers", list), "tags": tags}


class _Writer:
    """Makes one rule of each part, under names that it counts."""

    def __init__(self, spell: Spell, schema: Callable[[object], str]) -> None:
        self.rules: list[str] = []
        self._spell = spell
        self._schema = schema
        self._count = 0

    def format(self, format: object, depth: int, end: str | None = None) -> str:
        """What stands for a format, in a rule. `end`: a text that follows it, taken in by what has no end of its own."""
        if depth > _DEEPEST:
            raise GrammarError(f"the formats of the structural tag are nested deeper than {_DEEPEST}")
        kind = _get(format, "type", str)
        assert isinstance(format, dict)
        if kind == "any_text" and end:
            # The shortest text that ends so: what a token after `end` would be, belongs to what follows.
            return self._rule(f"{ANY_TEXT} {quoted(end)}", lazy=True)
        closing = f" {self._spell(end)}" if end else ""
        match kind:
            case "any_text":
                return ANY_TEXT
            case "const_string":
                return self._spell(_get(format, "value", str)) + closing
            case "json_schema":
                return self._rule(self._schema(format.get("json_schema", {}))) + closing
            case "regex":
                return self._rule(expression(_get(format, "pattern", str))) + closing
            case "sequence":
                elements = _get(format, "elements", list)
                return " ".join(self.format(element, depth + 1) for element in elements) + closing
            case "or":
                return self._either(self.format(element, depth + 1) for element in _get(format, "elements", list)) + closing
            case "tag":
                return self._tag(format, depth) + closing
            case "triggered_tags":
                return self.triggered(format, depth) + closing
            case "tags_with_separator":
                return self._separated(format, depth) + closing
        raise GrammarError(f"a format of type {kind[:50]!r} is not supported in a structural tag")

    def triggered(self, format: dict[str, Any], depth: int) -> str:
        """Free text in which each trigger begins one of the tags."""
        triggers, tags = _get(format, "triggers", list), _get(format, "tags", list)
        choices: list[str] = []
        for trigger in triggers:
            if not isinstance(trigger, str) or not trigger:
                raise GrammarError("a trigger of a structural tag is a text")
            begun = [tag for tag in tags if _get(tag, "begin", str).startswith(trigger)]
            if not begun:
                continue
            rest = self._either(self._tag(tag, depth + 1, skip=len(trigger)) for tag in begun)
            choices.append(self._rule(f"{self._announced(trigger)} {rest}"))
        if not choices:
            raise GrammarError("no trigger of the structural tag begins one of its tags")
        if lost := [tag for tag in tags if not any(tag["begin"].startswith(trigger) for trigger in triggers)]:
            raise GrammarError(f"no trigger begins the tag {lost[0]['begin'][:100]!r}")
        times = "+" if format.get("at_least_one") else "*"
        if format.get("stop_after_first"):
            return f"({' | '.join(choices)})" if times == "+" else f"({' | '.join(choices)} | {ANY_TEXT})"
        return f"({' | '.join(choices)}){times} {ANY_TEXT}"

    def _announced(self, trigger: str) -> str:
        """Text up to the first place that holds the trigger, which may be a token without a text."""
        spelled = self._spell(trigger)
        if spelled == quoted(trigger):
            return self._rule(f"{ANY_TEXT} {spelled}", lazy=True)
        return f"{ANY_TEXT} {spelled}"

    def _tag(self, tag: object, depth: int, skip: int = 0) -> str:
        """`skip`: characters of its beginning that are there already."""
        begin, end = _get(tag, "begin", str)[skip:], _get(tag, "end", str)
        assert isinstance(tag, dict)
        content = self.format(_get(tag, "content", dict), depth + 1, end or None)
        return self._rule(f"{self._spell(begin)} {content}" if begin else content)

    def _separated(self, format: dict[str, Any], depth: int) -> str:
        tag = self._either(self._tag(tag, depth + 1) for tag in _get(format, "tags", list))
        separator = self._spell(_get(format, "separator", str))
        several = tag if format.get("stop_after_first") else f"{tag} ({separator} {tag})*"
        return several if format.get("at_least_one") else f"({several})?"

    def _either(self, choices: Iterable[str]) -> str:
        joined = " | ".join(choices)
        if not joined:
            raise GrammarError("a structural tag offers a choice among nothing")
        return f"({joined})"

    def _rule(self, body: str, *, lazy: bool = False) -> str:
        name = f"r{self._count}"
        self._count += 1
        self.rules.append(f"{name}{'[lazy]' if lazy else ''}: {body}")
        return name


def _get(entry: object, key: str, kind: type[Any]) -> Any:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, kind):
        raise GrammarError(f"`{key}` of a structural tag must be {_KINDS[kind]}")
    return value
