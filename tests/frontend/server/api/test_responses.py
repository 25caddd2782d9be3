"""POST /v1/responses, over a real connection and with OpenAI's own client."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import openai
import pytest

from frontend.server.api.responses.objects import ResponseEvent, ResponseObject
from tests.frontend.server.api.running import RunningEngine

_ASK: dict[str, Any] = {"model": "demo", "input": "Hi", "max_output_tokens": 12, "seed": 3, "ignore_eos": True}


@pytest.fixture(scope="module")
def client(running: RunningEngine) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def _answer(http: httpx.Client, **fields: Any) -> ResponseObject:
    response = http.post("/v1/responses", json=_ASK | fields)
    assert response.status_code == 200, response.text
    return msgspec.json.decode(response.content, type=ResponseObject)


def _events(http: httpx.Client, **fields: Any) -> list[dict[str, Any]]:
    text = http.post("/v1/responses", json=_ASK | fields | {"stream": True}).text
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        msgspec.convert(event, ResponseEvent)
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def _chat(http: httpx.Client, messages: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    ask = {"messages": messages, "max_tokens": 12, "seed": 3, "ignore_eos": True, "return_token_ids": True}
    choice: dict[str, Any] = http.post("/v1/chat/completions", json=ask | fields).json()["choices"][0]
    return choice


def test_it_is_the_chat_in_other_words(http: httpx.Client) -> None:
    answer = _answer(http, metadata={"a": "b"}, temperature=0.5, store=True, text={"format": {"type": "text"}})
    chat = _chat(http, [{"role": "user", "content": "Hi"}], temperature=0.5)
    (message,) = answer.output
    assert message.content[0].text == chat["message"]["content"]  # type: ignore[union-attr]
    assert (answer.status, answer.incomplete_details and answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (answer.metadata, answer.temperature, answer.store) == ({"a": "b"}, 0.5, False)
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (len(chat["prompt_token_ids"]), 12)
    assert answer.usage.total_tokens == answer.usage.input_tokens + 12


def test_an_answer_that_stops_is_complete(http: httpx.Client) -> None:
    text = _chat(http, [{"role": "user", "content": "Hi"}])["message"]["content"]
    answer = _answer(http, stop=text[8:12])
    assert (answer.status, answer.incomplete_details) == ("completed", None)
    assert answer.output[0].status == "completed"
    assert answer.output[0].content[0].text == text[: text.index(text[8:12])]  # type: ignore[union-attr]


def test_a_stream_tells_each_step(http: httpx.Client) -> None:
    events = _events(http)
    kinds = [event["type"].removeprefix("response.") for event in events]
    steps = [kind for index, kind in enumerate(kinds) if index == 0 or kind != kinds[index - 1]]
    assert steps == [
        *("created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.done"),
        *("content_part.done", "output_item.done", "incomplete"),
    ]
    whole = _answer(http)
    last = msgspec.convert(events[-1]["response"], ResponseObject)
    assert last.output[0].content == whole.output[0].content  # type: ignore[union-attr]
    assert "".join(event["delta"] for event in events if "delta" in event) == last.output[0].content[0].text  # type: ignore[union-attr]
    assert last.usage == whole.usage or last.usage is not None  # the second may find the first in the prefix cache
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == []


def test_every_form_of_a_conversation(http: httpx.Client, running: RunningEngine) -> None:
    items: list[dict[str, Any]] = [
        {"role": "developer", "content": [{"type": "input_text", "text": "s"}]},
        {"type": "message", "role": "user", "content": "a"},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {
            "type": "message",
            "role": "assistant",
            "id": "msg_1",
            "content": [{"type": "output_text", "text": "b", "annotations": []}],
        },
        {"role": "user", "content": [{"type": "input_text", "text": "c"}]},
    ]
    chat = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    answer = _answer(http, input=items)
    assert answer.usage is not None
    expected = _chat(http, chat)
    assert answer.usage.input_tokens == len(expected["prompt_token_ids"])
    assert answer.output[0].content[0].text == expected["message"]["content"]  # type: ignore[union-attr]
    instructed = _answer(http, instructions="s", input=items[1:])
    assert instructed.output[0].content == answer.output[0].content  # type: ignore[union-attr]


def test_log_probabilities_are_those_of_the_text(http: httpx.Client) -> None:
    for fields in ({"top_logprobs": 2}, {"include": ["message.output_text.logprobs", "reasoning.encrypted_content"]}):
        entries = _answer(http, **fields).output[0].content[0].logprobs  # type: ignore[union-attr]
        told = [entry for event in _events(http, **fields) if event["type"].endswith("text.delta") for entry in event["logprobs"]]
        assert entries == told  # the simulated device has none, so both are empty here


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": {"id": "conv_1"}}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": "x"}, {"role": "wizard", "content": "x"}]}, "input[1].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"input": "x" * 60_000}, "input"),
        ({"input": [{"role": "user", "content": ""}] * 8193}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tool_choice": {"type": "mcp", "server_label": "x"}}, "tool_choice"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
        ({"metadata": {"x": "y" * 513}}, "metadata"),
    ],
)
def test_faults_name_the_field_as_the_client_knows_it(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    response = http.post("/v1/responses", json=_ASK | fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text
    assert "messages" not in response.json()["error"]["message"] or "conversation has" in response.json()["error"]["message"]


def test_nothing_is_stored(http: httpx.Client) -> None:
    name = _answer(http).id
    for response in (http.get(f"/v1/responses/{name}"), http.delete(f"/v1/responses/{name}")):
        assert response.status_code == 404
        assert "stores none" in response.json()["error"]["message"]


def test_the_official_client(client: openai.OpenAI, http: httpx.Client) -> None:
    text = _chat(http, [{"role": "user", "content": "Hi"}])["message"]["content"]
    stop = text[8:12]
    extra = {"seed": 3, "ignore_eos": True, "stop": stop}
    fields: dict[str, Any] = {"model": "demo", "input": "Hi", "max_output_tokens": 12, "extra_body": extra}
    text = text[: text.index(stop)]
    assert client.responses.create(**fields).output_text == text
    with client.responses.stream(**fields) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(pieces) == final.output_text == text
    assert (final.status, final.usage is not None) == ("completed", True)
    with pytest.raises(openai.NotFoundError, match="stores none"):
        client.responses.retrieve("resp_1")
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(model="demo", input="Hi", previous_response_id="resp_1")
    assert (raised.value.param, raised.value.code) == ("previous_response_id", "unsupported_parameter")
