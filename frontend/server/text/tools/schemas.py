"""The JSON schemas of tools, as grammars take them."""

from typing import Any

from frontend.wire import Tool

_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # as models saw JSON in training
_NESTED = ("properties", "$defs", "definitions")  # keywords that hold schemas by name
_COMBINING = ("allOf", "anyOf", "oneOf", "if", "$ref")  # where other schemas have a say in what an object is
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
    }
    if isinstance(schema.get("properties"), dict) and not any(key in schema for key in (*_COMBINING, *_OPEN)):
        closed["additionalProperties"] = False
    return closed


def _mentions(value: Any, key: str) -> bool:
    if isinstance(value, dict):
        return key in value or any(_mentions(item, key) for item in value.values())
    return isinstance(value, list) and any(_mentions(item, key) for item in value)
