"""What an output must be, from what users write: the same for HTTP and the Python client.

Here is only looked at what kind of thing it is. Whether it can be followed, the grammar process says.
"""

import re
from collections.abc import Sequence
from typing import Literal

import msgspec

from frontend.errors import InvalidRequest
from protocol.params import MAX_GRAMMAR_CHARACTERS, Grammar

_MOST_CHOICES = 10_000

# A rule of llama.cpp's GBNF is written with "::=", one of Lark with ":". What is in quotes, and in comments, says nothing.
_QUOTED = re.compile(r'"(?:[^"\\\n]|\\.)*"|#[^\n]*|//[^\n]*')


def from_schema(schema: bytes | str, param: str) -> Grammar:
    """A JSON schema, as JSON. Raises InvalidRequest naming `param`, as all functions here do."""
    text = _bounded(schema if isinstance(schema, str) else schema.decode(), param)
    if not text.lstrip().startswith(("{", "true")):
        raise InvalidRequest(f"{param}: a JSON schema is an object", param)
    return Grammar("json_schema", text)


def from_regex(pattern: str, param: str) -> Grammar:
    """A regular expression that matches the whole output."""
    if not pattern:
        raise InvalidRequest(f"{param}: the expression is empty", param)
    return Grammar("regex", _bounded(pattern, param))


def from_choices(choices: Sequence[str], param: str) -> Grammar:
    """One of several texts."""
    if not choices or not all(choices) or len(choices) > _MOST_CHOICES:
        raise InvalidRequest(f"{param}: 1 to {_MOST_CHOICES} choices are possible, and none of them is empty", param)
    return Grammar("choice", _bounded(msgspec.json.encode(list(choices)).decode(), param))


def from_grammar(text: str, param: str) -> Grammar:
    """A grammar in Lark or in llama.cpp's GBNF."""
    if not text.strip():
        raise InvalidRequest(f"{param}: the grammar is empty", param)
    kind: Literal["gbnf", "lark"] = "gbnf" if "::=" in _QUOTED.sub("", _bounded(text, param)) else "lark"
    return Grammar(kind, text)


def from_structural_tag(tag: bytes | str, param: str) -> Grammar:
    """Free text with marked parts that follow schemas, as JSON."""
    return Grammar("structural_tag", _bounded(tag if isinstance(tag, str) else tag.decode(), param))


def _bounded(text: str, param: str) -> str:
    if len(text) > MAX_GRAMMAR_CHARACTERS:
        raise InvalidRequest(f"{param}: at most {MAX_GRAMMAR_CHARACTERS} characters are possible, not {len(text)}", param)
    return text
