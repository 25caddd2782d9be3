"""Agents at work: the official clients, tools and schemas, before a whole engine on the simulated device."""

from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import openai
import pydantic
import pytest

from tests.integration.launching import SIMULATED, Engine, launch


class Weather(pydantic.BaseModel, extra="forbid"):
    city: Literal["Paris", "Rome"]
    is_sunny: bool


_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
_FUNCTION: Any = {"type": "function", "name": "weather", "description": "Of a city", "parameters": _SCHEMA, "strict": True}
_TOOL: Any = {"name": "weather", "description": "Of a city", "input_schema": _SCHEMA}
_LIMIT = 400  # tokens; more than a call or an object of the schema takes, with all the space that may be in it
_SEED: Any = {"seed": 1}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    flags = ("--max-model-len", "1024", "--max-num-seqs", "8", "--served-model-name", "demo")
    with launch(tmp_path_factory.mktemp("agents"), *SIMULATED, *flags) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{engine.address}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_responses_follow_a_schema(client: openai.OpenAI) -> None:
    ask: Any = {"model": "demo", "input": "The weather?", "text_format": Weather, "max_output_tokens": _LIMIT, "extra_body": _SEED}
    answer = client.responses.parse(**ask)
    assert isinstance(answer.output_parsed, Weather)
    with client.responses.stream(**ask) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Weather)


def test_responses_call_a_tool_and_hear_what_came_of_it(client: openai.OpenAI) -> None:
    said: list[Any] = [{"role": "user", "content": "The weather in Rome?"}]
    ask: Any = {
        "model": "demo",
        "tools": [_FUNCTION],
        "max_output_tokens": _LIMIT,
        "parallel_tool_calls": False,
        "extra_body": _SEED,
    }
    named: Any = {"type": "function", "name": "weather"}
    for choice in ("required", named):
        answer = client.responses.create(input=said, tool_choice=choice, **ask)
        (call,) = answer.output
        assert call.type == "function_call"
        assert (call.name, answer.status) == ("weather", "completed")
        assert call.arguments in ('{"city": "Paris"}', '{"city": "Rome"}')
    with client.responses.stream(input=said, tool_choice="required", **ask) as stream:
        pieces = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        (streamed,) = stream.get_final_response().output
    assert streamed.type == "function_call"
    assert "".join(pieces) == streamed.arguments
    said += [call.model_dump(), {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}]
    told = [client.responses.create(input=items, tool_choice="none", **ask) for items in (said[:1], said)]
    assert [[item.type for item in heard.output] for heard in told] == [["message"], ["message"]]
    tokens = [heard.usage.input_tokens for heard in told if heard.usage is not None]
    assert tokens[0] < tokens[1]


def test_messages_call_a_tool_and_hear_what_came_of_it(engine: Engine) -> None:
    said: list[Any] = [{"role": "user", "content": "The weather in Rome?"}]
    once: Any = {"type": "any", "disable_parallel_tool_use": True}
    named: Any = {"type": "tool", "name": "weather"}
    with anthropic.Anthropic(base_url=engine.address, api_key="none", max_retries=0) as client:
        ask: Any = {"model": "demo", "tools": [_TOOL], "max_tokens": _LIMIT, "extra_body": _SEED}
        for choice in (once, named):
            answer = client.messages.create(messages=said, tool_choice=choice, **ask)
            (call,) = answer.content
            assert call.type == "tool_use"
            assert (call.name, answer.stop_reason) == ("weather", "tool_use")
            assert call.input["city"] in ("Paris", "Rome")
        with client.messages.stream(messages=said, tool_choice=once, **ask) as stream:
            assert "input_json" in [event.type for event in stream]
            final = stream.get_final_message()
        assert [block.type for block in final.content] == ["tool_use"]
        told = client.messages.count_tokens(model="demo", messages=said, tools=[_TOOL]).input_tokens
        assert told == answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)
        result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "sunny"}]}
        said += [{"role": "assistant", "content": [call.model_dump(exclude_none=True)]}, {"role": "user", "content": [result]}]
        assert client.messages.count_tokens(model="demo", messages=said, tools=[_TOOL]).input_tokens > told
        heard = client.messages.create(messages=said, tool_choice={"type": "none"}, **ask)
        assert [block.type for block in heard.content] == ["text"]
        config: Any = {"format": {"type": "json_schema", "schema": Weather.model_json_schema()}}
        ask.pop("tools")
        (text,) = client.messages.create(messages=said[:1], output_config=config, **ask).content
        assert text.type == "text"
        Weather.model_validate_json(text.text)
