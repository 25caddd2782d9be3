"""Random JSON values: of the types that a JSON schema names, mostly; odd ones, now and then; and bytes that are nearly right."""

import json
import string
from collections.abc import Mapping
from random import Random
from typing import Any

_TEXTS = (
    "", " ", "a", "Hello", "demo", "user", "assistant", "system", "tool", "text", "auto", "none", "required", "function",
    "json_object", "json_schema", "type", "<|im_end|>", "<|im_start|>user\n", "<think>", "</think>", "<tool_call>",
    '<tool_call>{"name": "f", "arguments": {', '{"a": 1}', "[1, 2", "{{ 7 * 7 }}", "{% for a in range(9) %}", "\0", "\ufdd0",
    "\ufffe", "\U0001f600", "é\u0301", "\u202e", "\ue000\ue001", "(a+)+$", "[a-z]{1,9}", "(", "root ::= 'a' root | 'b'",
    "start: /a/", "../../etc/passwd", "x", "word ", "9", "data: [DONE]\n\n", "-1", "NaN", "true", "null", "resp_1", "ephemeral",
    "input_text", "output_text", "tool_result", "tool_use", "image_url",
)  # fmt: skip
_INTEGERS = (
    0,
    1,
    2,
    3,
    -1,
    5,
    7,
    16,
    100,
    255,
    8191,
    8192,
    49151,
    49152,
    2**31 - 1,
    2**31,
    2**63 - 1,
    2**63,
    -(2**63),
    2**64,
    10**30,
)
_NUMBERS = (0.0, 0.5, 1.0, -0.5, 1e-9, 1e308, 2.5, 100.0)
_DEEPEST = 6


def text(draw: Random) -> str:
    if draw.random() < 0.6:
        return draw.choice(_TEXTS)
    alphabet = string.printable + "äßπ中\U0001f600\u200b"
    return "".join(draw.choices(alphabet, k=draw.randrange(12)))


def anything(draw: Random, depth: int = 0) -> Any:
    """Any JSON value."""
    kind = draw.randrange(8 if depth < _DEEPEST else 5)
    match kind:
        case 0:
            return None
        case 1:
            return draw.random() < 0.5
        case 2:
            return draw.choice(_INTEGERS)
        case 3:
            return draw.choice(_NUMBERS)
        case 4 | 5:
            return text(draw)
        case 6:
            return [anything(draw, depth + 1) for _ in range(draw.randrange(4))]
    return {text(draw): anything(draw, depth + 1) for _ in range(draw.randrange(4))}


class Schemas:
    """The components of an OpenAPI document."""

    def __init__(self, components: Mapping[str, Any]) -> None:
        self._components = components

    def value(self, schema: Mapping[str, Any], draw: Random, depth: int = 0) -> Any:
        """A value of the schema, or, one time in twenty, of none."""
        if draw.random() < 0.05 or depth > _DEEPEST:
            return anything(draw, depth)
        if (reference := schema.get("$ref")) is not None:
            return self.value(self._components[reference.rpartition("/")[2]], draw, depth)
        for several in ("anyOf", "oneOf"):
            if several in schema:
                return self.value(draw.choice(schema[several]), draw, depth)
        if "enum" in schema:
            return draw.choice(schema["enum"])
        if "const" in schema:
            return schema["const"]
        match schema.get("type"):
            case "object":
                return self._object(schema, draw, depth)
            case "array":
                items = schema.get("items") or {}
                return [self.value(items, draw, depth + 1) for _ in range(draw.choice((0, 1, 1, 2, 3, 20)))]
            case "string":
                return text(draw)
            case "integer":
                low = schema.get("minimum", -3)
                return draw.choice(_INTEGERS) if draw.random() < 0.3 else draw.randrange(low, max(low, 0) + 9)
            case "number":
                return draw.choice(_NUMBERS)
            case "boolean":
                return draw.random() < 0.5
            case "null":
                return None
        return _schema_like(draw) if draw.random() < 0.3 else anything(draw, depth)

    def _object(self, schema: Mapping[str, Any], draw: Random, depth: int) -> dict[str, Any]:
        properties: Mapping[str, Any] = schema.get("properties", {})
        required = set(schema.get("required", ()))
        share = draw.choice((0.05, 0.2, 0.6))
        made = {
            name: self.value(inner, draw, depth + 1)
            for name, inner in properties.items()
            if (name in required and draw.random() < 0.97) or draw.random() < share
        }
        extra = schema.get("additionalProperties")
        if extra or not properties:
            inner = extra if isinstance(extra, Mapping) else {}
            made |= {text(draw): self.value(inner, draw, depth + 1) for _ in range(draw.randrange(3))}
        if draw.random() < 0.05:
            made[text(draw)] = anything(draw, depth + 1)
        return made


def _schema_like(draw: Random) -> Any:
    """What looks like a JSON schema, as tools and structured outputs bring it."""
    kinds = ["object", "array", "string", "integer", "number", "boolean", "null", "wizard"]
    made: dict[str, Any] = {"type": draw.choice(kinds)}
    if draw.random() < 0.5:
        made["properties"] = {
            text(draw): _schema_like(draw) if draw.random() < 0.4 else {"type": draw.choice(kinds)} for _ in range(2)
        }
    for name in (
        "required",
        "enum",
        "items",
        "pattern",
        "$ref",
        "additionalProperties",
        "minLength",
        "maxItems",
        "anyOf",
        "format",
    ):
        if draw.random() < 0.12:
            made[name] = anything(draw, 3)
    return made


def mutated(data: bytes, draw: Random) -> bytes:
    """The bytes with a few of them changed, cut, doubled or moved."""
    made = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 3, 8))):
        place = draw.randrange(len(made) + 1)
        size = draw.choice((1, 1, 2, 4, 16, 100))
        match draw.randrange(7):
            case 0:
                made[place : place + size] = draw.randbytes(min(size, len(made) - place))
            case 1:
                del made[place : place + size]
            case 2:
                made[place:place] = made[place : place + size] * draw.choice((1, 2, 50))
            case 3:
                made[place:place] = draw.randbytes(size)
            case 4:
                made[place : place + 4] = draw.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**24)).to_bytes(
                    4, draw.choice(("little", "big"))
                )
            case 5:
                made[place : place + 8] = draw.choice((0, 1, 2**63, 2**64 - 1, 2**40)).to_bytes(8, "little")
            case 6 if made:
                made[min(place, len(made) - 1)] ^= 1 << draw.randrange(8)
    return bytes(made)


def encoded(value: Any, draw: Random) -> bytes:
    """JSON, now and then with a flaw."""
    data = json.dumps(value, ensure_ascii=draw.random() < 0.5, allow_nan=True).encode("utf-8", "surrogatepass")
    return mutated(data, draw) if draw.random() < 0.03 else data
