"""What an output must be, as Python programs say it."""

from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import pytest

from frontend.client.outputs import CompletionOutput, RequestOutput
from frontend.client.parameters import merged
from frontend.errors import InvalidRequest
from protocol.params import Grammar, SamplingParams


class Pet(msgspec.Struct):
    kind: Literal["cat", "dog"]
    age: int | None = None


class Person(msgspec.Struct):
    name: str
    pets: list[Pet]


@dataclass
class Point:
    x: int
    y: int


class Model:
    """As pydantic has them; the package is not needed."""

    def __init__(self, text: str) -> None:
        self.text = text

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        return {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}

    @classmethod
    def model_validate_json(cls, text: str) -> "Model":
        return cls(text)


def schema(**fields: Any) -> Any:
    params = merged(None, fields)  # type: ignore[arg-type]
    assert params is not None and params.structured is not None
    assert params.structured.kind == "json_schema"
    return msgspec.json.decode(params.structured.text)


def test_a_struct_says_what_its_objects_hold_and_nothing_else() -> None:
    found = schema(schema=Person)
    assert found["$defs"]["Person"]["additionalProperties"] is False
    assert found["$defs"]["Pet"]["properties"]["kind"] == {"enum": ["cat", "dog"]}
    assert found["$defs"]["Pet"]["required"] == ["kind"]
    assert schema(schema=Point)["$defs"]["Point"]["required"] == ["x", "y"]
    assert schema(schema=list[Pet])["type"] == "array"
    assert schema(schema=dict[str, int]) == {"type": "object", "additionalProperties": {"type": "integer"}}
    assert schema(schema=Model) == {**Model.model_json_schema(), "additionalProperties": False}


def test_a_schema_is_taken_as_it_is() -> None:
    given = {"type": "object", "properties": {"b": {}, "a": {}}}
    assert schema(schema=given) == given
    assert list(schema(schema=given)["properties"]) == ["b", "a"]
    assert schema(schema=msgspec.json.encode(given).decode()) == given


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"regex": "a+"}, Grammar("regex", "a+")),
        ({"choice": ["yes", "no"]}, Grammar("choice", '["yes","no"]')),
        ({"grammar": 'root ::= "a"'}, Grammar("gbnf", 'root ::= "a"')),
        ({"grammar": "start: /a/"}, Grammar("lark", "start: /a/")),
        ({"json_object": True}, Grammar("json_object")),
        ({"json_object": False, "regex": None}, None),
        ({"structured": Grammar("regex", "b")}, Grammar("regex", "b")),
    ],
)
def test_each_keyword_makes_its_grammar(fields: Any, wanted: Grammar | None) -> None:
    assert merged(SamplingParams(max_tokens=5), fields) == SamplingParams(max_tokens=5, structured=wanted)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"regex": "a", "choice": ["b"]}, "choice"),
        ({"regex": "a", "structured": Grammar("regex", "b")}, "structured"),
        ({"regex": 5}, "regex"),
        ({"regex": ""}, "regex"),
        ({"choice": "abc"}, "choice"),
        ({"choice": [1]}, "choice"),
        ({"choice": []}, "choice"),
        ({"grammar": ""}, "grammar"),
        ({"json_object": "yes"}, "json_object"),
        ({"schema": 5}, "schema"),
        ({"schema": object}, "schema"),
        ({"schema": {"a": object()}}, "schema"),
        ({"schema": "not JSON"}, "schema"),
        ({"schema": {"title": "\ud800"}}, "schema"),
    ],
)
def test_what_is_wrong_is_named(fields: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        merged(None, fields)
    assert refusal.value.param == param


def test_an_answer_is_read_as_what_it_is() -> None:
    output = RequestOutput(None, [1], [CompletionOutput(0, text='{"name":"Ada","pets":[{"kind":"cat"}]}')])
    assert output.parse(Person) == Person("Ada", [Pet("cat")])
    assert output.parse(Model).text == output.text
    with pytest.raises(ValueError, match="truncated"):
        RequestOutput(None, [1], [CompletionOutput(0, text='{"name":"Ad')]).parse(Person)
