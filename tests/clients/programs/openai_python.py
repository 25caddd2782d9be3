"""The official client for Python: chat, completions, tools, structured output, responses."""

import asyncio
import json
import sys

import openai
from pydantic import BaseModel

BASE_URL, MODEL = sys.argv[1:]
client = openai.OpenAI(base_url=f"{BASE_URL}/v1", api_key="none", max_retries=0, timeout=60)
SAY = [{"role": "user", "content": "Say hello."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"type": "string", "enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}


class Answer(BaseModel):
    number: int
    even: bool


def check_models():
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL


def check_chat():
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=SAY, max_tokens=8, temperature=0)
    assert raw.headers["x-request-id"]
    whole = raw.parse()
    assert whole.usage.completion_tokens <= 8
    text, usage = "", None
    options = {"include_usage": True}
    with client.chat.completions.create(
        model=MODEL, messages=SAY, max_tokens=8, temperature=0, stream=True, stream_options=options
    ) as stream:
        for chunk in stream:
            usage = chunk.usage or usage
            if chunk.choices:
                text += chunk.choices[0].delta.content or ""
    assert text == whole.choices[0].message.content
    assert usage == whole.usage or usage.total_tokens == whole.usage.total_tokens
    scored = client.chat.completions.create(model=MODEL, messages=SAY, max_tokens=4, logprobs=True, top_logprobs=3)
    assert all(len(token.top_logprobs) == 3 for token in scored.choices[0].logprobs.content)


def check_completions():
    both = client.completions.create(model=MODEL, prompt=["One, two,", "A, B,"], max_tokens=4, n=2, temperature=1, seed=1)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    echoed = client.completions.create(model=MODEL, prompt="One, two, three,", max_tokens=2, temperature=0, echo=True, logprobs=2)
    choice = echoed.choices[0]
    assert choice.text.startswith("One, two, three,")
    assert choice.logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in choice.logprobs.token_logprobs[1:])
    assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs) == len(choice.logprobs.text_offset)
    assert "".join(choice.logprobs.tokens) == choice.text
    best = client.completions.create(model=MODEL, prompt="One, two,", max_tokens=4, n=1, best_of=3, temperature=1, seed=1)
    assert len(best.choices) == 1
    biased = client.completions.create(model=MODEL, prompt="One, two,", max_tokens=3, temperature=0, logit_bias={"33": 100})
    text = biased.choices[0].text
    assert text == 3 * text[: len(text) // 3], text


def check_embeddings():
    """The client asks for base64 by itself, and decodes it."""
    texts = ["A cat sleeps on the sofa.", "The kitten naps on the couch.", "Stock markets fell sharply on Monday."]
    found = client.embeddings.create(model=MODEL, input=texts)
    cat, kitten, stocks = (item.embedding for item in found.data)
    assert [item.index for item in found.data] == [0, 1, 2]
    assert abs(sum(value * value for value in cat) - 1) < 1e-5
    assert found.usage.total_tokens == found.usage.prompt_tokens > 10
    floats = client.embeddings.create(model=MODEL, input=texts[0], encoding_format="float").data[0].embedding
    assert max(abs(one - other) for one, other in zip(cat, floats, strict=True)) < 1e-6
    near, far = (sum(one * other for one, other in zip(cat, text, strict=True)) for text in (kitten, stocks))
    assert near > far, (near, far)
    try:
        client.embeddings.create(model=MODEL, input=texts, dimensions=16)
    except openai.BadRequestError as error:
        assert error.param == "dimensions"
    else:
        raise AssertionError("the demo model has no shorter embeddings")


def check_tools():
    asked = client.chat.completions.create(
        model=MODEL, messages=SAY, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, max_tokens=200, temperature=0
    )
    message = asked.choices[0].message
    assert asked.choices[0].finish_reason == "tool_calls", asked
    call = message.tool_calls[0]
    assert call.function.name == "get_weather" and call.id
    arguments = json.loads(call.function.arguments)
    assert set(arguments) == {"city", "unit"} and arguments["unit"] in ("C", "F")
    named = {"type": "function", "function": {"name": "get_weather"}}
    forced = client.chat.completions.create(
        model=MODEL, messages=SAY, tools=[WEATHER], tool_choice=named, max_tokens=200, temperature=0
    )
    assert forced.choices[0].message.tool_calls[0].function.name == "get_weather"
    history = [*SAY, message, {"role": "tool", "tool_call_id": call.id, "content": "18 degrees, rain"}]
    after = client.chat.completions.create(
        model=MODEL, messages=history, tools=[WEATHER], tool_choice="none", max_tokens=16, temperature=0
    )
    assert after.choices[0].message.content and not after.choices[0].message.tool_calls
    client.chat.completions.create(model=MODEL, messages=SAY, tools=[WEATHER], max_tokens=16, temperature=0)  # auto
    with client.chat.completions.stream(
        model=MODEL, messages=SAY, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, max_tokens=200, temperature=0
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds, kinds
    assert final.choices[0].message.tool_calls[0].function.arguments == call.function.arguments


def check_structured():
    parsed = client.chat.completions.parse(model=MODEL, messages=SAY, response_format=Answer, max_tokens=60, temperature=0)
    assert isinstance(parsed.choices[0].message.parsed, Answer)
    some = client.chat.completions.create(
        model=MODEL, messages=SAY, response_format={"type": "json_object"}, max_tokens=300, temperature=1, seed=2, logit_bias={}
    )
    if some.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(some.choices[0].message.content), dict)
    for fields, allowed in (({"choice": ["red", "blue"]}, {"red", "blue"}), ({"regex": "[ab]{2}"}, {"aa", "ab", "ba", "bb"})):
        extra = {"structured_outputs": fields}
        chosen = client.chat.completions.create(model=MODEL, messages=SAY, max_tokens=20, temperature=0, extra_body=extra)
        assert chosen.choices[0].message.content in allowed, chosen.choices[0].message.content
    try:
        broken = {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"type": "object", "properties": {"a": {"type": "nothing"}}}},
        }
        client.chat.completions.create(model=MODEL, messages=SAY, response_format=broken, max_tokens=5)
        raise AssertionError("a schema of an unknown type was taken")
    except openai.BadRequestError as error:
        assert "nothing" in str(error) or "type" in str(error)


def check_responses():
    answer = client.responses.create(model=MODEL, input="Say hello.", max_output_tokens=300, temperature=0, store=False)
    assert answer.output_text and answer.status == "completed"
    with client.responses.stream(model=MODEL, input="Say hello.", max_output_tokens=300, temperature=0) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created" and "response.output_text.delta" in kinds, kinds
    assert final.output_text == answer.output_text
    parsed = client.responses.parse(model=MODEL, input="Say hello.", text_format=Answer, max_output_tokens=60, temperature=0)
    assert isinstance(parsed.output_parsed, Answer)
    tool = {"type": "function", "strict": True, **WEATHER["function"]}
    called = client.responses.create(
        model=MODEL, input="Weather?", tools=[tool], tool_choice="required", max_output_tokens=200, temperature=0
    )
    call = next(item for item in called.output if item.type == "function_call")
    assert json.loads(call.arguments)["unit"] in ("C", "F")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "18 C"}
    after = client.responses.create(
        model=MODEL, input=[{"role": "user", "content": "Weather?"}, call, result], max_output_tokens=8, temperature=0
    )
    assert after.output_text


def check_errors():
    try:
        client.completions.create(model=MODEL, prompt=list(range(100, 9000)), max_tokens=4)
        raise AssertionError("a prompt beyond the context was taken")
    except openai.BadRequestError as error:
        assert error.code == "context_length_exceeded", error
    clipped = client.chat.completions.with_raw_response.create(model=MODEL, messages=SAY, max_tokens=2_000_000, stop=[" "])
    assert clipped.status_code == 200
    try:
        client.models.retrieve("no-such-model")
        raise AssertionError("a model that is not there was found")
    except openai.NotFoundError:
        pass


async def check_cancel():
    many = openai.AsyncOpenAI(base_url=f"{BASE_URL}/v1", api_key="none", max_retries=0)
    task = asyncio.create_task(
        many.completions.create(model=MODEL, prompt="Once", max_tokens=4000, extra_body={"ignore_eos": True})
    )
    await many.completions.create(model=MODEL, prompt="Once", max_tokens=1)
    task.cancel()
    try:
        await task
        raise AssertionError("a cancelled request was answered")
    except asyncio.CancelledError:
        pass
    await many.close()


check_models()
check_chat()
check_completions()
check_embeddings()
check_tools()
check_structured()
check_responses()
check_errors()
asyncio.run(check_cancel())
