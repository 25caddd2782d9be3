"""Translates GBNF, the grammars of llama.cpp, to the Lark dialect of `llguidance`.

GBNF knows characters only. The library splits a text into lexemes, of which it takes the longest that fits, so a boundary between
two lexemes may fall otherwise than GBNF would allow. Therefore everything that does not recur is made one terminal, within which
there are no boundaries: a grammar without recursion becomes a single regular expression.
"""

import re
from dataclasses import dataclass, field
from typing import TypeAlias

from scheduler_proc.grammar.errors import GrammarError
from scheduler_proc.grammar.lark import quoted

_DEEPEST = 64  # groups within groups
_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_TIMES = re.compile(r"\{\s*(\d{1,6})\s*(,)?\s*(\d{1,6})?\s*\}")
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "[": "[", "]": "]", "-": "-", "^": "^", "/": "/"}


@dataclass(frozen=True, slots=True)
class _Atom:
    """A string or a class of characters, as Lark writes it."""

    text: str


@dataclass(frozen=True, slots=True)
class _Reference:
    name: str


@dataclass(frozen=True, slots=True)
class _Repeated:
    node: "_Node"
    times: str  # "*", "+", "?" or "{m,n}"


@dataclass(frozen=True, slots=True)
class _Alternatives:
    sequences: tuple[tuple["_Node", ...], ...]


_Node: TypeAlias = _Atom | _Reference | _Repeated | _Alternatives


def gbnf_to_lark(text: str) -> str:
    """Raises GrammarError naming the place."""
    rules = _Parser(text).parse()
    if "root" not in rules:
        raise GrammarError("the grammar has no rule `root`, where a text begins")
    return _Writer(rules).write()


@dataclass(slots=True)
class _Parser:
    """Recursive descent over the text."""

    text: str
    position: int = 0
    rules: dict[str, _Alternatives] = field(default_factory=dict)
    depth: int = 0

    def parse(self) -> dict[str, _Alternatives]:
        self._skip(_SPACE_AND_LINES)
        while self.position < len(self.text):
            name = self._name()
            self._skip(_SPACE)
            if not self.text.startswith("::=", self.position):
                raise self._error("`::=` is wanted")
            self.position += 3
            self._skip(_SPACE_AND_LINES)
            if name in self.rules:
                raise self._error(f"the rule `{name}` is there twice")
            self.rules[name] = self._alternatives()
            self._skip(_SPACE)
            if self.position < len(self.text) and self.text[self.position] not in "\r\n":
                raise self._error("the end of the line is wanted")
            self._skip(_SPACE_AND_LINES)
        return self.rules

    def _alternatives(self) -> _Alternatives:
        sequences = [self._sequence()]
        while self._next() == "|":
            self.position += 1
            self._skip(_SPACE_AND_LINES)
            sequences.append(self._sequence())
        return _Alternatives(tuple(sequences))

    def _sequence(self) -> tuple[_Node, ...]:
        nodes: list[_Node] = []
        while True:
            character = self._next()
            node: _Node
            if character == '"':
                node = _Atom(quoted(self._literal()))
            elif character == "[":
                node = _Atom(self._character_class())
            elif character == ".":
                self.position += 1
                node = _Atom("/(?s:.)/")
            elif character == "(":
                node = self._group()
            elif character and _NAME.match(character):
                node = _Reference(self._name())
            else:
                return tuple(nodes)
            self._skip(_SPACE if not self.depth else _SPACE_AND_LINES)
            nodes.append(self._repetition(node))
            self._skip(_SPACE if not self.depth else _SPACE_AND_LINES)

    def _group(self) -> _Alternatives:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise self._error(f"groups are nested deeper than {_DEEPEST}")
        self.position += 1
        self._skip(_SPACE_AND_LINES)
        inner = self._alternatives()
        if self._next() != ")":
            raise self._error("`)` is wanted")
        self.position += 1
        self.depth -= 1
        return inner

    def _repetition(self, node: _Node) -> _Node:
        times = self._next()
        if times and times in "*+?":
            self.position += 1
            return _Repeated(node, times)
        if times != "{":
            return node
        match = _TIMES.match(self.text, self.position)
        if match is None:
            raise self._error("`{m}`, `{m,}` or `{m,n}` is wanted")
        self.position = match.end()
        low, comma, high = match[1], match[2], match[3]
        return _Repeated(node, f"{{{low},{high or ''}}}" if comma else f"{{{low}}}")

    def _literal(self) -> str:
        self.position += 1
        characters = []
        while (character := self._next()) != '"':
            if character in ("", "\n"):
                raise self._error("a string is not closed")
            characters.append(self._character())
        self.position += 1
        return "".join(characters)

    def _character_class(self) -> str:
        """In the syntax of Rust's regular expressions."""
        self.position += 1
        pieces = ["["]
        if self._next() == "^":
            self.position += 1
            pieces.append("^")
        while self._next() != "]":
            low = high = self._class_character()
            if self._next() == "-" and self.text[self.position + 1 : self.position + 2] not in ("]", ""):
                self.position += 1
                high = self._class_character()
                if high < low:
                    raise self._error("a range of characters ends before it begins")
            pieces.append(_code(low) if low == high else f"{_code(low)}-{_code(high)}")
        self.position += 1
        if pieces[-1] in ("[", "^"):
            raise self._error("a class of characters is empty")
        return f"/{''.join(pieces)}]/"

    def _class_character(self) -> str:
        if self._next() in ("", "\n"):
            raise self._error("a class of characters is not closed")
        return self._character()

    def _character(self) -> str:
        """One character, perhaps escaped."""
        character = self.text[self.position]
        self.position += 1
        if character != "\\":
            return character
        kind = self._next()
        self.position += 1
        if kind in _ESCAPES:
            return _ESCAPES[kind]
        size = _HEX_DIGITS.get(kind, 0)
        digits = self.text[self.position : self.position + size]
        try:
            value = int(digits, 16) if size and len(digits) == size else -1
            if 0xD800 <= value < 0xE000:
                raise ValueError
            found = chr(value)
        except (ValueError, OverflowError) as error:
            raise self._error(f"`\\{kind}` is no escape") from error
        self.position += size
        return found

    def _name(self) -> str:
        match = _NAME.match(self.text, self.position)
        if match is None:
            raise self._error("the name of a rule is wanted")
        self.position = match.end()
        return match[0]

    def _next(self) -> str:
        return self.text[self.position : self.position + 1]

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.position)
        assert match is not None  # it matches nothing, too
        self.position = match.end()

    def _error(self, what: str) -> GrammarError:
        line = self.text.count("\n", 0, self.position) + 1
        column = self.position - self.text.rfind("\n", 0, self.position)
        return GrammarError(f"line {line}, column {column} of the grammar: {what}")


class _Writer:
    """Rules that recur become rules of Lark, the others terminals."""

    def __init__(self, rules: dict[str, _Alternatives]) -> None:
        self._rules = rules
        self._uses = {name: set(_references(rule)) for name, rule in rules.items()}
        for name, uses in self._uses.items():
            if missing := uses - rules.keys():
                raise GrammarError(f"the rule `{name}` uses `{min(missing)}`, which is not there")
        self._recursive = self._find_recursive()
        self._names = {name: f"{'r' if name in self._recursive else 'T'}{index}" for index, name in enumerate(rules)}

    def write(self) -> str:
        rules = (f"{self._names[name]}: {self._alternatives(rule)}\n" for name, rule in self._rules.items())
        return f"start: {self._names['root']}\n{''.join(rules)}"

    def _find_recursive(self) -> set[str]:
        """Rules that use themselves, and those that use such ones: what is left when all others are taken away."""
        left = {name: set(uses) for name, uses in self._uses.items()}
        users: dict[str, list[str]] = {name: [] for name in left}
        for name, uses in left.items():
            for used in uses:
                users[used].append(name)
        plain = [name for name, uses in left.items() if not uses]
        recursive = set(left)
        while plain:
            name = plain.pop()
            recursive.discard(name)
            for user in users[name]:
                left[user].discard(name)
                if not left[user]:
                    plain.append(user)
        return recursive

    def _alternatives(self, rule: _Alternatives) -> str:
        return " | ".join(" ".join(map(self._node, sequence)) or '""' for sequence in rule.sequences)

    def _node(self, node: _Node) -> str:
        match node:
            case _Atom(text):
                return text
            case _Reference(name):
                return self._names[name]
            case _Repeated(inner, times):
                return f"({self._node(inner)}){times}"
            case _Alternatives():
                return f"({self._alternatives(node)})"


def _references(node: _Node) -> list[str]:
    match node:
        case _Reference(name):
            return [name]
        case _Repeated(inner):
            return _references(inner)
        case _Alternatives(sequences):
            return [name for sequence in sequences for inner in sequence for name in _references(inner)]
    return []


def _code(character: str) -> str:
    return f"\\x{{{ord(character):x}}}"
