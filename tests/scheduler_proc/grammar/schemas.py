"""Random JSON schemas of the supported subset, and what is wrong with an answer to one."""

import json
import random
from typing import Any

import jsonschema

_WORDS = ("alpha", "beta", "gamma", "name", "size", "städte", 'a "quoted" one', "x y", "long_property_name_number_one")
_PATTERNS = ("^[a-z]{2,5}$", "^(yes|no)$", "^\\d{3}-\\d{4}$", "^[A-Z][a-z]*$")
_FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "email")

Schema = dict[str, Any]


def random_schema(rng: random.Random, depth: int = 3) -> Schema:
    """Every answer to it ends after a few hundred tokens at most, however it is chosen."""
    schema = _object(rng, depth)
    if rng.random() < 0.3:
        schema["$defs"] = {"part": _value(rng, 1)}
        schema["properties"]["part"] = {"$ref": "#/$defs/part"}
        schema["required"].append("part")
    return schema


def _value(rng: random.Random, depth: int) -> Schema:
    simple = (_string, _integer, _number, _enum, _constant, _boolean, _pattern, _format)
    nested = (_object, _array, _tuple, _any_of, _nullable)
    return rng.choice(simple + nested if depth > 0 else simple)(rng, depth - 1)


def _object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(_WORDS, rng.randint(1, 4))
    schema: Schema = {
        "type": "object",
        "properties": {name: _value(rng, depth - 1) for name in names},
        "required": rng.sample(names, rng.randint(0, len(names))),
        "additionalProperties": False,
    }
    if rng.random() < 0.2:
        schema["title"] = "A thing"
        schema["description"] = "What it is."
    return schema


def _array(rng: random.Random, depth: int) -> Schema:
    low = rng.randint(0, 2)
    return {"type": "array", "items": _value(rng, depth - 1), "minItems": low, "maxItems": low + rng.randint(0, 2)}


def _tuple(rng: random.Random, depth: int) -> Schema:
    parts = [_value(rng, depth - 1) for _ in range(rng.randint(1, 3))]
    return {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts)}


def _any_of(rng: random.Random, depth: int) -> Schema:
    return {"anyOf": [_value(rng, depth - 1) for _ in range(rng.randint(2, 3))]}


def _nullable(rng: random.Random, depth: int) -> Schema:
    return {"anyOf": [_value(rng, depth - 1), {"type": "null"}]}


def _string(rng: random.Random, depth: int) -> Schema:
    low = rng.randint(0, 3)
    return {"type": "string", "minLength": low, "maxLength": low + rng.randint(0, 20)}


def _pattern(rng: random.Random, depth: int) -> Schema:
    return {"type": "string", "pattern": rng.choice(_PATTERNS), "maxLength": 12}


def _format(rng: random.Random, depth: int) -> Schema:
    return {"type": "string", "format": rng.choice(_FORMATS[:5])}


def _integer(rng: random.Random, depth: int) -> Schema:
    low = rng.randint(-1000, 1000)
    schema: Schema = {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 5000)}
    if rng.random() < 0.3:
        schema = {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": low + rng.randint(2, 5000)}
    return schema


def _number(rng: random.Random, depth: int) -> Schema:
    low = rng.randint(-400, 400) / 4
    return {"type": "number", "minimum": low, "maximum": low + rng.randint(1, 50), "multipleOf": 0.25}


def _enum(rng: random.Random, depth: int) -> Schema:
    return {"enum": rng.sample([*_WORDS, 1, 2.5, True, None], rng.randint(1, 5))}


def _constant(rng: random.Random, depth: int) -> Schema:
    return {"const": rng.choice([*_WORDS, 17, False, None])}


def _boolean(rng: random.Random, depth: int) -> Schema:
    return {"type": "boolean"}


def complaint(schema: Schema, answer: str) -> str:
    """Why an answer is not what its schema asks for; empty: it is."""
    try:
        value = json.loads(answer)
    except ValueError as error:
        return f"no JSON: {error}"
    checker = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(schema)
    errors = [error.message for error in checker.iter_errors(value)]
    return "; ".join(errors)
