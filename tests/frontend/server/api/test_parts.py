"""Responses and messages of thoughts, texts and calls: as the official clients read their events, and whole."""

import json
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from frontend.server.api.anthropic.objects import MessageAnswer, MessageEvent
from frontend.server.api.anthropic.writer import MessageWriter
from frontend.server.api.errors import ApiError
from frontend.server.api.jobs import Output
from frontend.server.api.parts import PartWriter
from frontend.server.api.responses.objects import ResponseEvent, ResponseObject
from frontend.server.api.responses.writer import ResponseWriter
from frontend.server.generation import TextDelta, TextGeneration
from frontend.server.text.token_bytes import TokenBytes
from frontend.server.text.tokenizer import Tokenizer
from frontend.server.text.tools.events import Arguments, CallBegun, CallEnded, Content, Event, Reasoning
from protocol.messages import FinishReason

_GENERATION = cast(TextGeneration, SimpleNamespace(num_prompt_tokens=9, num_output_tokens=40, num_cached_tokens=4))
_CALLS: list[Event] = [
    Reasoning("Let me "),
    Reasoning("see."),
    Content("I call"),
    Content(" two:"),
    CallBegun(0, "f"),
    Arguments(0, '{"a": '),
    Arguments(0, '"ü\\n"}'),
    CallEnded(0),
    CallBegun(1, "g"),
    CallEnded(1),
]


def _response() -> ResponseWriter:
    nothing = cast(Any, None)  # there are no log-probabilities to be told
    response = ResponseObject(id="resp_1", created_at=1, model="demo", text={"format": {"type": "text"}})
    return ResponseWriter(response, cast(Tokenizer, nothing), cast(TokenBytes, nothing), tells_logprobs=False)


def _message() -> MessageWriter:
    return MessageWriter(_GENERATION, "demo")


def _streamed(writer: ResponseWriter | MessageWriter, events: list[Event], finish: FinishReason = "stop") -> list[dict[str, Any]]:
    data = writer.begin()
    for event in events:
        data += writer.add(0, _GENERATION, TextDelta("", [1], [], events=[event]))
    data += writer.add(0, _GENERATION, TextDelta("", [1], [], finish, events=[])) + writer.end([_GENERATION])
    return [json.loads(block.split("\ndata: ")[1]) for block in data.decode().split("\n\n") if block]


def _whole(writer: ResponseWriter | MessageWriter, events: list[Event], finish: FinishReason = "stop") -> bytes:
    return writer.whole([_GENERATION], [Output("", [1] * 40, [], finish, None, events=events)])


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_ids(part) for key, part in value.items() if key not in ("id", "call_id")}
    return [_without_ids(part) for part in value] if isinstance(value, list) else value


def test_a_response_has_an_item_of_each() -> None:
    told = msgspec.json.decode(_whole(_response(), _CALLS))
    assert [item["type"] for item in told["output"]] == ["reasoning", "message", "function_call", "function_call"]
    thoughts, message, first, second = told["output"]
    assert thoughts["content"] == [{"type": "reasoning_text", "text": "Let me see."}]
    assert message["content"][0]["text"] == "I call two:"
    assert (first["name"], json.loads(first["arguments"]), second["name"], second["arguments"]) == ("f", {"a": "ü\n"}, "g", "")
    assert first["call_id"] != second["call_id"]
    assert {item["status"] for item in told["output"]} == {told["status"]} == {"completed"}
    assert told["usage"]["output_tokens_details"]["reasoning_tokens"] == round(40 * 11 / (11 + 11 + 13))
    assert told["usage"]["input_tokens_details"]["cached_tokens"] == 4


def test_a_stream_of_responses_is_what_the_official_client_reads() -> None:
    events = _streamed(_response(), _CALLS)
    official: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    for event in events:
        official.validate_python(event, strict=False)
        msgspec.convert(event, ResponseEvent)
    whole = msgspec.json.decode(_whole(_response(), _CALLS))
    Response.model_validate(whole, strict=False)
    assert _without_ids(events[-1]["response"]) == _without_ids(whole)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for kind, done in (("output_text", "text"), ("reasoning_text", "text"), ("function_call_arguments", "arguments")):
        for end in (event for event in events if event["type"] == f"response.{kind}.done"):
            pieces = [
                event["delta"]
                for event in events
                if event["type"] == f"response.{kind}.delta" and event["item_id"] == end["item_id"]
            ]
            assert "".join(pieces) == end[done]
    items = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert items == events[-1]["response"]["output"]


def test_a_message_has_a_block_of_each() -> None:
    told = msgspec.json.decode(_whole(_message(), _CALLS), type=MessageAnswer)
    assert _without_ids(msgspec.to_builtins(told.content)) == [
        {"type": "thinking", "thinking": "Let me see.", "signature": ""},
        {"type": "text", "text": "I call two:"},
        {"type": "tool_use", "name": "f", "input": {"a": "ü\n"}},
        {"type": "tool_use", "name": "g", "input": {}},
    ]
    assert told.stop_reason == "tool_use"
    assert (told.usage.input_tokens, told.usage.cache_read_input_tokens) == (5, 4)


def test_a_stream_of_messages_is_what_the_official_client_reads() -> None:
    events = _streamed(_message(), _CALLS)
    official: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
    for event in events:
        msgspec.convert(event, MessageEvent)
        if event["type"] != "ping":
            official.validate_python(event, strict=False)
    Message.model_validate(msgspec.json.decode(_whole(_message(), _CALLS)), strict=False)
    starts = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert starts == ["thinking", "text", "tool_use", "tool_use"]
    assert [event["index"] for event in events if event["type"] == "content_block_stop"] == [0, 1, 2, 3]
    arguments = [event["delta"]["partial_json"] for event in events if event.get("delta", {}).get("type") == "input_json_delta"]
    assert json.loads("".join(arguments)) == {"a": "ü\n"}
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


# As channels have it: thoughts again behind a text.
_CHANNELS: list[Event] = [
    Reasoning("Let me see."),
    Content("I look."),
    Reasoning("\nWhere?"),
    CallBegun(0, "f"),
    Arguments(0, "{}"),
    CallEnded(0),
]


def test_thoughts_may_come_again_behind_a_text() -> None:
    told = msgspec.json.decode(_whole(_response(), _CHANNELS))
    assert [item["type"] for item in told["output"]] == ["reasoning", "message", "reasoning", "function_call"]
    blocks = msgspec.json.decode(_whole(_message(), _CHANNELS))["content"]
    assert [block["type"] for block in blocks] == ["thinking", "text", "thinking", "tool_use"]
    for event in _streamed(_response(), _CHANNELS):
        TypeAdapter[Any](ResponseStreamEvent).validate_python(event, strict=False)
    events = _streamed(_message(), _CHANNELS)
    starts = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert starts == ["thinking", "text", "thinking", "tool_use"]


@pytest.mark.parametrize(("text", "told"), [("{", {"INVALID_JSON": "{"}), ("[1]", {"INVALID_JSON": "[1]"}), ("", {}), ("{}", {})])
def test_arguments_that_are_no_object(text: str, told: dict[str, str]) -> None:
    events: list[Event] = [CallBegun(0, "f"), Arguments(0, text), CallEnded(0)]
    assert msgspec.json.decode(_whole(_message(), events))["content"][0]["input"] == told


@pytest.mark.parametrize("writer", [_response, _message])
def test_an_answer_that_is_cut_off_or_empty(writer: Any) -> None:
    for events in (_CALLS[:6], []):
        told = msgspec.json.decode(_whole(writer(), events, "length"))
        streamed = _streamed(writer(), events, "length")
        if writer is _response:
            assert told["status"] == "incomplete"
            assert told["output"][-1]["status"] == "incomplete"
            assert streamed[-1]["type"] == "response.incomplete"
            assert len(told["output"]) == (3 if events else 1)
        else:
            assert told["stop_reason"] == "max_tokens"
            assert len(told["content"]) == (3 if events else 1)


def test_a_failure_ends_a_stream_in_its_format() -> None:
    error = ApiError(500, "no more", code="internal_error")
    response, message = _response(), _message()
    response.begin()
    event = json.loads(response.fail(error).decode().split("\ndata: ")[1])
    TypeAdapter[Any](ResponseStreamEvent).validate_python(event, strict=False)
    assert (event["type"], event["response"]["error"]["message"]) == ("response.failed", "no more")
    assert message.fail(error).startswith(b"event: error\ndata: ")
    assert json.loads(message.fail(error).decode().split("\ndata: ")[1])["error"] == {"type": "api_error", "message": "no more"}


def test_both_are_put_together_by_the_same() -> None:
    assert isinstance(_response(), PartWriter)
    assert isinstance(_message(), PartWriter)
