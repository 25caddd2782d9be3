"""Calls of tools before a whole engine, whose simulated model writes at random whatever grammars allow."""

import json
from typing import Any

import pytest
from openai import BadRequestError, OpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolUnionParam

from tests.integration.launching import Engine

_PLACE: dict[str, object] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 6}, "zoom": {"enum": [1, 2]}},
    "required": ["zoom"],
}
_TOOLS: list[ChatCompletionToolUnionParam] = [
    {"type": "function", "function": {"name": "show", "description": "Shows a place", "parameters": _PLACE}},
    {"type": "function", "function": {"name": "now"}},
]
_MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Show me Paris"}]


def _check(name: str, arguments: str) -> None:
    given = json.loads(arguments)
    if name == "now":
        assert given == {}
    else:
        assert name == "show" and given.keys() <= {"city", "zoom"} and given["zoom"] in (1, 2) and len(given.get("city", "")) <= 6


def test_calls_are_valid_and_streams_tell_the_same(simulated_engine: Engine) -> None:
    with OpenAI(base_url=simulated_engine.address + "/v1", api_key="none", max_retries=0) as client:
        for seed in range(6):
            ask: dict[str, Any] = {"model": client.models.list().data[0].id, "messages": _MESSAGES, "tools": _TOOLS, "seed": seed}
            ask |= {"tool_choice": "required", "parallel_tool_calls": seed % 2 == 0, "max_tokens": 400}
            choice = client.chat.completions.create(**ask).choices[0]
            calls = choice.message.tool_calls or []
            functions = [call.function for call in calls if call.type == "function"]
            assert choice.message.content is None
            for function in functions[:-1] if choice.finish_reason == "length" else functions:
                _check(function.name, function.arguments)
            assert choice.finish_reason == "length" or (functions and choice.finish_reason == "tool_calls")
            with client.chat.completions.stream(**ask) as stream:
                final = stream.get_final_completion().choices[0]
            told = [(call.function.name, call.function.arguments) for call in final.message.tool_calls or ()]
            assert told == [(function.name, function.arguments) for function in functions]
            assert final.finish_reason == choice.finish_reason


def _tool(parameters: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": parameters, **fields}}


def test_schemas_that_no_grammar_follows(simulated_engine: Engine) -> None:
    """Those of agents' tools are often so, and the agents do not know."""
    odd: list[dict[str, Any]] = [
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=b)b"}}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/Nothing"}}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"type": "strin"}}, "required": ["a"]},
        {"type": "object", "enum": [1], "properties": {"a": {}}, "required": ["a"]},
    ]
    with OpenAI(base_url=simulated_engine.address + "/v1", api_key="none", max_retries=0) as client:
        ask: dict[str, Any] = {
            "model": client.models.list().data[0].id,
            "messages": _MESSAGES,
            "tool_choice": "required",
            "seed": 1,
        }
        for schema in odd:
            tools = [_tool(schema), *_TOOLS]
            choice = client.chat.completions.create(**ask | {"tools": tools}).choices[0]
            assert choice.message.tool_calls or choice.finish_reason == "length"
            with pytest.raises(BadRequestError, match="the schema of f: ") as raised:
                client.chat.completions.create(**ask | {"tools": [_tool(schema, strict=True)]})
            assert raised.value.param == "tools"
            assert "%json" not in raised.value.message
        with pytest.raises(BadRequestError, match="schema of an object"):
            client.chat.completions.create(**ask | {"tools": [_tool({"type": "string"})]})
        answer = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strin"}}}
        with pytest.raises(BadRequestError) as raised:
            client.chat.completions.create(**ask | {"tools": [_tool({})], "response_format": answer})
        assert raised.value.param == "response_format"
