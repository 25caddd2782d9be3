"""The JSON schemas of tools, as grammars take them."""

import json
from typing import Any

import msgspec

from frontend.wire import Tool
from protocol.params import Grammar

_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # as models saw JSON in training
_NESTED = ("properties", "$defs", "definitions")  # keywords that hold schemas by name
_COMBINING = ("allOf", "anyOf", "oneOf", "if", "$ref")  # where other schemas have a say in what an object is
_ANNOTATIONS = ("title", "description", "examples", "$comment")  # which say nothing to a grammar, at length
_OPEN = ("patternProperties", "additionalProperties", "unevaluatedProperties")


def schema_of(tool: Tool) -> dict[str, Any]:
    """The schema that a grammar follows for the arguments of a tool, an object.

    Of a tool that is not strict, keywords that grammars do not know are left out of account, and its objects have no properties
    that are not named: nothing would end a small model's inventions.
    """
    schema = tool.parameters or {"type": "object", "properties": {}, "additionalProperties": False}
    if "type" not in schema and not any(key in schema for key in _COMBINING):
        schema = {"type": "object", **schema}
    if not tool.strict and not _mentions(schema, "allOf"):
        schema = _closed(schema)
    return {**schema, "x-guidance": {**_STYLE, "lenient": not tool.strict}}


def loosened(tool: Tool) -> Tool:
    """The tool with the names of its arguments alone."""
    properties, required = tool.parameters.get("properties"), tool.parameters.get("required")
    if not isinstance(properties, dict):
        return msgspec.structs.replace(tool, parameters={"type": "object"})
    needed = [name for name in required if isinstance(name, str) and name in properties] if isinstance(required, list) else []
    return msgspec.structs.replace(
        tool, parameters={"type": "object", "properties": {name: {} for name in properties}, "required": needed}
    )


def arguments_grammar(tool: Tool) -> Grammar:
    """The grammar of one tool's arguments by themselves."""
    if tool.strict:
        return Grammar("json_schema", json.dumps(tool.parameters))
    return Grammar("lark", f"%llguidance {{}}\nstart: %json {json.dumps(schema_of(tool))}\n")


def _closed(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    closed = {
        key: {name: _closed(part) for name, part in value.items()}
        if key in _NESTED and isinstance(value, dict)
        else _closed(value)
        if key == "items"
        else [_closed(part) for part in value]
        if key in ("anyOf", "oneOf", "prefixItems") and isinstance(value, list)
        else value
        for key, value in schema.items()
        if key not in _ANNOTATIONS
    }
    if isinstance(schema.get("properties"), dict) and not any(key in schema for key in (*_COMBINING, *_OPEN)):
        closed["additionalProperties"] = False
    return closed


def _mentions(value: Any, key: str) -> bool:
    if isinstance(value, dict):
        return key in value or any(_mentions(item, key) for item in value.values())
    return isinstance(value, list) and any(_mentions(item, key) for item in value)
