"""Anthropic's official client on `/v1/messages`: text, streams, tools."""

import sys

import anthropic

BASE_URL, MODEL = sys.argv[1:]
client = anthropic.Anthropic(base_url=BASE_URL, api_key="none", max_retries=0, timeout=60)
GREEDY = {"temperature": 0}  # later versions of the client have no parameter for it
SAY = [{"role": "user", "content": "Say hello."}]
TOOL = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Bern", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}

whole = client.messages.create(model=MODEL, messages=SAY, system="Be brief.", max_tokens=8, extra_body=GREEDY)
assert whole.content[0].type == "text" and whole.usage.output_tokens <= 8 and whole.usage.input_tokens > 0
with client.messages.stream(model=MODEL, messages=SAY, system="Be brief.", max_tokens=8, extra_body=GREEDY) as stream:
    text = "".join(stream.text_stream)
    final = stream.get_final_message()
assert text == whole.content[0].text == final.content[0].text
assert final.stop_reason == whole.stop_reason
asked = client.messages.create(
    model=MODEL,
    messages=SAY,
    tools=[TOOL],
    tool_choice={"type": "any", "disable_parallel_tool_use": True},
    max_tokens=100,
    extra_body=GREEDY,
)
use = next(block for block in asked.content if block.type == "tool_use")
assert asked.stop_reason == "tool_use" and use.name == "get_weather" and use.input["city"] in ("Bern", "Rome")
with client.messages.stream(
    model=MODEL,
    messages=SAY,
    tools=[TOOL],
    tool_choice={"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True},
    max_tokens=100,
    extra_body=GREEDY,
) as stream:
    streamed = stream.get_final_message()
assert next(block for block in streamed.content if block.type == "tool_use").input == use.input
history = [
    *SAY,
    {"role": "assistant", "content": asked.content},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "rain"}]},
]
after = client.messages.create(model=MODEL, messages=history, tools=[TOOL], max_tokens=8, extra_body=GREEDY)
assert after.usage.input_tokens > whole.usage.input_tokens
assert client.messages.count_tokens(model=MODEL, messages=SAY).input_tokens > 0
stopped = client.messages.create(model=MODEL, messages=SAY, max_tokens=64, extra_body=GREEDY, stop_sequences=["!", ".", "?"])
assert stopped.stop_reason in ("stop_sequence", "end_turn")
try:
    client.messages.create(model=MODEL, messages=[{"role": "user", "content": "word " * 20000}], max_tokens=8)
    raise AssertionError("a prompt beyond the context was taken")
except anthropic.BadRequestError as error:
    assert error.body["error"]["type"] == "invalid_request_error"
