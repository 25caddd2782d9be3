"""The Python client calls tools: the same conversation as over HTTP, and calls that are valid by grammar."""

import asyncio
import json
from collections.abc import Iterator

import httpx
import pytest

from frontend.client import AsyncClient, Client, ToolCall
from tests.integration.launching import SIMULATED, Engine, launch

WEATHER: dict[str, object] = {
    "name": "weather",
    "description": "The weather at a place.",
    "parameters": {
        "type": "object",
        "properties": {"place": {"enum": ["here", "there"]}},
        "required": ["place"],
        "additionalProperties": False,
    },
}
PAST: list[dict[str, object]] = [
    {"role": "user", "content": "How is the weather?"},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "here"}'}}]},
    {"role": "tool", "tool_call_id": "call_1", "content": "fine"},
    {"role": "user", "content": "And there?"},
]  # fmt: skip


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with launch(tmp_path_factory.mktemp("engine"), *SIMULATED, "--max-model-len", "2048") as engine:
        yield engine


def test_calls_come_whole_streamed_and_as_over_http(engine: Engine) -> None:
    wrapped = [{"type": "function", "function": WEATHER}]
    body = {"model": "demo", "messages": PAST, "tools": wrapped, "tool_choice": "required", "seed": 3, "return_token_ids": True}
    (choice,) = httpx.post(engine.address + "/v1/chat/completions", json=body, timeout=60).json()["choices"]
    with Client(engine.socket) as client:
        for tools in ([WEATHER], wrapped):
            whole = client.chat(PAST, seed=3, tools=tools, tool_choice="required")
            assert whole.prompt_token_ids == choice["prompt_token_ids"]
            assert whole.token_ids == choice["token_ids"]
            assert [(call.name, call.arguments) for call in whole.tool_calls] == [
                (call["function"]["name"], call["function"]["arguments"]) for call in choice["message"]["tool_calls"]
            ]
        assert whole.tool_calls
        for call in whole.tool_calls:
            assert (call.name, json.loads(call.arguments)["place"] in ("here", "there")) == ("weather", True)
        assert "tool_calls=[ToolCall(" in repr(whole)
        calls = [
            call
            for delta in client.chat(PAST, seed=3, tools=[WEATHER], tool_choice="weather", stream=True)
            for call in delta.tool_calls
        ]
        assert [call.name for call in calls] == ["weather"]
        again = client.chat(
            [*PAST, {"role": "assistant", "content": whole.text, "tool_calls": calls}], max_tokens=2, ignore_eos=True
        )
        assert len(again.token_ids) == 2
        untold = client.chat(PAST, max_tokens=1, tools=[WEATHER], tool_choice="none")
        assert len(untold.prompt_token_ids) < len(whole.prompt_token_ids)
    assert isinstance(calls[0], ToolCall)


def test_the_asyncio_client_has_them_too(engine: Engine) -> None:
    async def ask() -> list[ToolCall]:
        async with AsyncClient(engine.socket) as client:
            return (await client.chat(PAST, seed=3, tools=[WEATHER], tool_choice="required")).tool_calls

    assert {call.name for call in asyncio.run(ask())} == {"weather"}
