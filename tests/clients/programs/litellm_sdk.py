"""LiteLLM as a library; its proxy uses the same calls."""

import asyncio
import json
import sys

import litellm

BASE_URL, MODEL = sys.argv[1:]
litellm.telemetry = False
TARGET = {"model": f"openai/{MODEL}", "api_base": f"{BASE_URL}/v1", "api_key": "none", "max_retries": 0}
SAY = [{"role": "user", "content": "Say hello."}]
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}},
            "required": ["a"],
            "additionalProperties": False,
        },
    },
}

whole = litellm.completion(messages=SAY, max_tokens=8, temperature=0, **TARGET)
text = "".join(
    chunk.choices[0].delta.content or ""
    for chunk in litellm.completion(messages=SAY, max_tokens=8, temperature=0, stream=True, **TARGET)
)
assert text == whole.choices[0].message.content
assert asyncio.run(litellm.acompletion(messages=SAY, max_tokens=8, temperature=0, **TARGET)).choices[0].message.content == text
called = litellm.completion(messages=SAY, tools=[TOOL], tool_choice="required", max_tokens=100, temperature=0, **TARGET)
assert "a" in json.loads(called.choices[0].message.tool_calls[0].function.arguments)
schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
shaped = litellm.completion(
    messages=SAY,
    response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}},
    max_tokens=40,
    temperature=0,
    **TARGET,
)
assert isinstance(json.loads(shaped.choices[0].message.content)["ok"], bool)
legacy = {**TARGET, "model": f"text-completion-openai/{MODEL}"}
assert litellm.text_completion(prompt="One, two,", max_tokens=4, **legacy).choices[0].text
answer = litellm.responses(input="Say hello.", max_output_tokens=8, **{k: v for k, v in TARGET.items() if k != "max_retries"})
assert answer.output
by_messages = asyncio.run(
    litellm.anthropic_messages(messages=SAY, model=f"anthropic/{MODEL}", api_base=BASE_URL, api_key="none", max_tokens=8)
)
assert by_messages["content"][0]["text"]
try:
    litellm.completion(messages=[{"role": "user", "content": "word " * 20000}], **TARGET)
    raise AssertionError("a prompt beyond the context was taken")
except litellm.ContextWindowExceededError:
    pass
