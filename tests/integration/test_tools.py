"""Calls of tools before a whole engine, whose simulated model writes at random whatever grammars allow."""

import json
from typing import Any

from openai import OpenAI
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
