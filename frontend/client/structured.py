"""What an output must be, as Python programs say it."""

from collections.abc import Callable, Sequence
from typing import Any, TypedDict, TypeVar

import msgspec

from frontend import structured
from frontend.errors import InvalidRequest
from protocol.params import Grammar

Value = TypeVar("Value")


class StructuredFields(TypedDict, total=False):
    """Ways to say `structured`, of which at most one is given."""

    schema: Any  # a JSON schema, a pydantic model, or a type that msgspec decodes
    regex: str | None  # matches the whole output
    choice: Sequence[str] | None  # the output is one of these
    grammar: str | None  # in Lark or GBNF
    json_object: bool  # any JSON object


def from_schema(schema: Any, param: str = "schema") -> Grammar:
    """The grammar of a JSON schema (a dict, or its JSON), of a pydantic model, or of any type that msgspec decodes: a Struct, a
    dataclass, `list[…]` of them.

    Objects of a class have no other properties than its fields. Raises InvalidRequest naming `param`.
    """
    if isinstance(schema, str):
        return structured.from_schema(schema, param)
    if isinstance(schema, dict):
        found = schema
    else:
        found = _schema_of(schema, param)
        if "allOf" not in str(found):  # whose parts each allow what the others name
            found = _closed(found)
    try:
        return structured.from_schema(msgspec.json.encode(found), param)
    except (TypeError, UnicodeEncodeError, RecursionError) as error:
        raise InvalidRequest(f"{param}: {error}", param) from error


def parse(text: str, kind: type[Value]) -> Value:
    """A JSON text as a value of a type: a pydantic model, or any that msgspec decodes. Raises ValueError when it is none."""
    read: Callable[[str], Value] | None = getattr(kind, "model_validate_json", None)
    return msgspec.json.decode(text, type=kind) if read is None else read(text)


def take(fields: dict[str, Any]) -> None:
    """Puts `structured` in place of schema, regex, choice, grammar or json_object. Raises InvalidRequest on two of them."""
    given = [name for name in (*_READERS, "structured") if fields.get(name) not in (None, False)]
    if len(given) > 1:
        raise InvalidRequest(f"{given[0]} and {given[1]} cannot be used together", given[1])
    for name, read in _READERS.items():
        value = fields.pop(name, None)
        if value is not None and value is not False:
            fields["structured"] = read(value, name)


def _schema_of(kind: Any, param: str) -> dict[str, Any]:
    make: Callable[[], dict[str, Any]] | None = getattr(kind, "model_json_schema", None)
    try:
        return msgspec.json.schema(kind) if make is None else make()
    except (TypeError, ValueError) as error:  # pydantic's errors are ValueErrors or TypeErrors
        raise InvalidRequest(f"{param}: no JSON schema describes {kind!r:.100}: {error}", param) from error


def _closed(schema: Any) -> Any:
    """The schema with objects that say which properties they have, and no others."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: value if name in ("enum", "const", "default", "examples") else _closed(value) for name, value in schema.items()}
    if schema.get("type") == "object" and "properties" in schema:
        closed.setdefault("additionalProperties", False)
    return closed


def _regex(pattern: Any, param: str) -> Grammar:
    return structured.from_regex(_text(pattern, param), param)


def _choice(choices: Sequence[str], param: str) -> Grammar:
    if isinstance(choices, str):
        raise InvalidRequest(f"{param}: a list of texts is wanted", param)
    return structured.from_choices([_text(choice, param) for choice in choices], param)


def _grammar(text: Any, param: str) -> Grammar:
    return structured.from_grammar(_text(text, param), param)


def _json_object(wanted: Any, param: str) -> Grammar:
    if wanted is not True:
        raise InvalidRequest(f"{param}: true or false is wanted", param)
    return Grammar("json_object")


def _text(value: Any, param: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{param}: a text is wanted, not {type(value).__name__}", param)
    return value


_READERS: dict[str, Callable[[Any, str], Grammar]] = {
    "schema": from_schema,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
    "json_object": _json_object,
}
