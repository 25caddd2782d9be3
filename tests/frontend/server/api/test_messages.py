"""POST /v1/messages, over a real connection and with Anthropic's own client."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import msgspec
import pytest

from frontend.server.api.anthropic.objects import AnthropicErrorAnswer, MessageAnswer, MessageEvent, Text
from tests.frontend.server.api.running import RunningEngine

_USER = {"role": "user", "content": "Hi"}
_ASK: dict[str, Any] = {"model": "demo", "messages": [_USER], "max_tokens": 12, "seed": 3}


@pytest.fixture(scope="module")
def client(running: RunningEngine) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=running.url, api_key="none", max_retries=0) as client:
        yield client


def _answer(http: httpx.Client, **fields: Any) -> MessageAnswer:
    response = http.post("/v1/messages", json=_ASK | fields)
    assert response.status_code == 200, response.text
    return msgspec.json.decode(response.content, type=MessageAnswer)


def _text(answer: MessageAnswer) -> str:
    (block,) = answer.content
    assert isinstance(block, Text)
    return block.text


def _chat(http: httpx.Client, messages: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    ask = {"messages": messages, "max_tokens": 12, "seed": 3, "return_token_ids": True}
    choice: dict[str, Any] = http.post("/v1/chat/completions", json=ask | fields).json()["choices"][0]
    return choice


def _stream(http: httpx.Client, **fields: Any) -> list[dict[str, Any]]:
    text = http.post("/v1/messages", json=_ASK | fields | {"stream": True}).text
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        msgspec.convert(event, MessageEvent)
        events.append(event)
    return events


def test_it_is_the_chat_in_other_words(http: httpx.Client) -> None:
    answer, chat = _answer(http), _chat(http, [_USER])
    assert _text(answer) == chat["message"]["content"]
    assert (answer.stop_reason, answer.stop_sequence) == ("max_tokens", None)
    assert answer.usage.input_tokens + answer.usage.cache_read_input_tokens == len(chat["prompt_token_ids"])
    assert answer.usage.output_tokens == 12


def test_a_stop_sequence_is_named(http: httpx.Client) -> None:
    text = _text(_answer(http))
    answer = _answer(http, stop_sequences=["never", text[8:12]])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", text[8:12])
    assert _text(answer) == text[: text.index(text[8:12])]


def test_a_stream_tells_each_step(http: httpx.Client) -> None:
    events = _stream(http)
    kinds = [event["type"] for event in events]
    assert [kind for index, kind in enumerate(kinds) if index == 0 or kind != kinds[index - 1]] == [
        *("message_start", "content_block_start", "ping", "content_block_delta", "content_block_stop"),
        *("message_delta", "message_stop"),
    ]
    assert "".join(event["delta"]["text"] for event in events if event["type"] == "content_block_delta") == _text(_answer(http))
    assert events[0]["message"]["content"] == []
    assert events[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == 12


def test_every_form_of_a_conversation(http: httpx.Client) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": "c"},
    ]
    chat = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    for system in ("s", [{"type": "text", "text": "s"}]):
        assert _text(_answer(http, system=system, messages=messages)) == _chat(http, chat)["message"]["content"]
    apart = [{"role": "user", "content": "a"}, *messages[1:2], {"role": "user", "content": "c"}, {"role": "user", "content": []}]
    assert _text(_answer(http, system="s", messages=apart)) == _text(_answer(http, system="s", messages=messages))
    prefilled = [*messages, {"role": "assistant", "content": "I am"}]
    continued = _chat(http, [*chat, prefilled[-1]], continue_final_message=True, add_generation_prompt=False)
    assert _text(_answer(http, system="s", messages=prefilled)) == continued["message"]["content"]
    count = http.post("/v1/messages/count_tokens", json={"model": "demo", "system": "s", "messages": messages}).json()
    assert count == {"input_tokens": len(_chat(http, chat)["prompt_token_ids"])}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "message"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [_USER, {"role": "user", "content": [{"type": "image"}]}]}, "messages[1].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages[0].content[0].tool_use_id"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "x"}]}]}, "messages[0].content[0].name"),
        ({"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}] * 4097}, "8194 messages"),
        ({"system": [{"type": "image"}]}, "system.content[0]"),
        ({"stop_sequences": [""]}, "stop_sequences: "),
        ({"temperature": -1}, "temperature"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
        ({"tool_choice": {"type": "perhaps"}}, "tool_choice.type"),
        ({"mcp_servers": [{"url": "http://x"}]}, "mcp_servers"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
    ],
)
def test_faults_name_the_field_in_anthropics_form(http: httpx.Client, fields: dict[str, Any], said: str) -> None:
    response = http.post("/v1/messages", json=_ASK | fields)
    error = msgspec.json.decode(response.content, type=AnthropicErrorAnswer).error
    assert (response.status_code, error.type) == (400, "invalid_request_error")
    assert said in error.message


def test_other_errors_have_that_form_too(http: httpx.Client) -> None:
    for response, status, kind in (
        (http.post("/v1/messages", json=_ASK | {"model": "other"}), 404, "not_found_error"),
        (http.get("/v1/messages"), 405, "invalid_request_error"),
        (http.post("/v1/messages/nothing"), 404, "not_found_error"),
        (http.post("/v1/messages", content=b"{"), 400, "invalid_request_error"),
    ):
        error = msgspec.json.decode(response.content, type=AnthropicErrorAnswer).error
        assert (response.status_code, error.type) == (status, kind)


def test_the_official_client(client: anthropic.Anthropic, http: httpx.Client) -> None:
    text = _text(_answer(http))
    ask: dict[str, Any] = {"model": "demo", "max_tokens": 12, "messages": [_USER], "extra_body": {"seed": 3}}
    answer = client.messages.create(**ask)
    assert [block.type for block in answer.content] == ["text"]
    assert (answer.content[0].text, answer.stop_reason) == (text, "max_tokens")
    with client.messages.stream(**ask) as stream:
        assert "".join(stream.text_stream) == text
        final = stream.get_final_message()
    assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", 12)
    assert client.messages.count_tokens(model="demo", messages=[{"role": "user", "content": "Hi"}]).input_tokens > 2
    with pytest.raises(anthropic.NotFoundError, match="is not served here"):
        client.messages.create(**ask | {"model": "other"})
