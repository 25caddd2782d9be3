"""From the fields of requests to grammars."""

import json
from typing import Any

import msgspec
import pytest

from frontend.errors import InvalidRequest
from frontend.server.api.errors import ApiError
from frontend.server.api.structured import FIELDS, grammar_of
from protocol.params import MAX_GRAMMAR_CHARACTERS, Grammar

SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}}
TAG = {"type": "structural_tag", "structures": [{"begin": "<a>", "schema": {}, "end": "</a>"}], "triggers": ["<a>"]}


def read(**fields: Any) -> tuple[Grammar | None, str]:
    assert set(fields) <= set(FIELDS)
    return grammar_of({name: msgspec.Raw(json.dumps(value).encode()) for name, value in fields.items()})


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"response_format": {"type": "json_object"}}, Grammar("json_object")),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, Grammar("json_schema", json.dumps(SCHEMA))),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}},
            Grammar("json_schema", json.dumps(SCHEMA)),  # the order of the properties is that of the answer
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": None}}},
            Grammar("json_schema", json.dumps(SCHEMA)),
        ),
        ({"response_format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}, Grammar("json_schema", json.dumps(SCHEMA))),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, Grammar("json_object")),
        ({"response_format": TAG}, Grammar("structural_tag", json.dumps(TAG))),
        ({"structured_outputs": {"json": SCHEMA}}, Grammar("json_schema", json.dumps(SCHEMA))),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, Grammar("json_schema", json.dumps(SCHEMA))),
        ({"structured_outputs": {"json": True}}, Grammar("json_schema", "true")),
        ({"structured_outputs": {"regex": "a+", "json": None}}, Grammar("regex", "a+")),
        ({"structured_outputs": {"choice": ["a", "b"]}}, Grammar("choice", '["a","b"]')),
        ({"structured_outputs": {"grammar": 'root ::= "a"'}}, Grammar("gbnf", 'root ::= "a"')),
        ({"structured_outputs": {"grammar": 'start: "::=" // ::='}}, Grammar("lark", 'start: "::=" // ::=')),
        ({"structured_outputs": {"json_object": True}}, Grammar("json_object")),
        ({"structured_outputs": {"json_object": False, "regex": "a"}}, Grammar("regex", "a")),
        ({"structured_outputs": {"structural_tag": json.dumps(TAG)}}, Grammar("structural_tag", json.dumps(TAG))),
        ({"structured_outputs": {"regex": "a", "disable_any_whitespace": True}}, Grammar("regex", "a")),
        ({"guided_json": {}}, Grammar("json_schema", "{}")),
        ({"guided_json": json.dumps(SCHEMA)}, Grammar("json_schema", json.dumps(SCHEMA))),
        ({"guided_regex": "[0-9]+"}, Grammar("regex", "[0-9]+")),
        ({"guided_choice": ["yes", "no"]}, Grammar("choice", '["yes","no"]')),
        ({"guided_grammar": "start: /a/"}, Grammar("lark", "start: /a/")),
        ({"response_format": {"type": "text"}, "guided_regex": "a"}, Grammar("regex", "a")),
    ],
)
def test_each_field_is_understood(fields: dict[str, Any], wanted: Grammar) -> None:
    grammar, field = read(**fields)
    assert grammar == wanted
    assert field in fields


@pytest.mark.parametrize(
    "fields",
    [
        {},
        dict.fromkeys(FIELDS),
        {"response_format": {}},
        {"response_format": {"type": "text"}},
        {"structured_outputs": {}},
        {"structured_outputs": {"json": None, "json_object": False}},
    ],
)
def test_what_asks_for_nothing_is_nothing(fields: dict[str, Any]) -> None:
    assert read(**fields) == (None, "")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"schema": SCHEMA}}, "response_format.type"),
        ({"response_format": "json_object"}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": 5}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": [1]}}}, "response_format.json_schema.schema"),
        ({"structured_outputs": {"json": 5}}, "structured_outputs.json"),
        ({"structured_outputs": {"regex": ["a"]}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": [""]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": "ab"}}, "structured_outputs.choice"),
        ({"structured_outputs": {"json_object": 1}}, "structured_outputs.json_object"),
        ({"guided_choice": ["a"] * 10_001}, "guided_choice"),
        ({"guided_grammar": " "}, "guided_grammar"),
        ({"guided_regex": "a" * (MAX_GRAMMAR_CHARACTERS + 1)}, "guided_regex"),
        ({"guided_regex": "a" * (7 * MAX_GRAMMAR_CHARACTERS)}, "guided_regex"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        read(**fields)
    assert refusal.value.param == param
    assert param.partition(".")[0] in str(refusal.value)
    assert len(str(refusal.value)) < 500


@pytest.mark.parametrize("depth", [500, 100_000])
def test_a_deep_schema_ends_in_an_answer(depth: int) -> None:
    deep = b"[" * depth + b"]" * depth
    with pytest.raises((InvalidRequest, ApiError)):
        grammar_of({"guided_choice": msgspec.Raw(deep)})
