"""gpt-oss's channels before a whole engine, whose simulated model writes at random whatever grammars allow."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from openai import OpenAI
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from frontend.client import Client
from frontend.server.text.tools.harmony import CALL, MARKS, RETURN
from tests.frontend.server.text.tools.families import HARMONY
from tests.integration.launching import SIMULATED, Engine, launch
from tests.model_writer import write_huggingface

_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 6}, "zoom": {"enum": [1, 2]}},
    "required": ["zoom"],
}
_SHOW: Any = {"type": "function", "function": {"name": "show", "description": "Shows a place", "parameters": _SCHEMA}}
_MESSAGES: Any = [{"role": "user", "content": "Show me Paris"}]


def write_model(directory: Path) -> Path:
    """With the marks as special tokens, and the ends that gpt-oss has. Theirs are the lowest ids, which the simulated device
    prefers."""
    letters = [*MARKS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    fast = FastTokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
    path = write_huggingface(directory, vocab_size=len(letters), max_position_embeddings=8192)
    fast.save(str(path / "tokenizer.json"))
    ends = [letters.index(mark) for mark in (RETURN, CALL)]
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    (path / "chat_template.jinja").write_text(HARMONY)
    return path


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    directory = tmp_path_factory.mktemp("channels")
    model = write_model(directory / "model")
    with launch(directory, *SIMULATED, "--model", str(model), "--served-model-name", "oss") as engine:
        yield engine


@pytest.fixture(scope="module")
def openai(engine: Engine) -> Iterator[OpenAI]:
    with OpenAI(base_url=engine.address + "/v1", api_key="none", max_retries=0) as client:
        yield client


def check(name: str, arguments: str) -> None:
    given = json.loads(arguments)
    assert name == "show" and given.keys() <= {"city", "zoom"} and given["zoom"] in (1, 2) and len(given.get("city", "")) <= 6


def no_marks(value: object) -> None:
    text = json.dumps(value, ensure_ascii=False)
    assert not any(mark in text for mark in MARKS), text


def test_calls_are_valid_and_streams_tell_the_same(openai: OpenAI) -> None:
    thought = 0
    for seed in range(6):
        ask: dict[str, Any] = {"model": "oss", "messages": _MESSAGES, "tools": [_SHOW], "seed": seed, "tool_choice": "required"}
        choice = openai.chat.completions.create(**ask, max_tokens=2000).choices[0]
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        no_marks(choice.message.model_dump())
        thought += bool(choice.message.model_dump().get("reasoning_content"))
        (call,) = choice.message.tool_calls or [None]
        assert call is not None and call.type == "function"
        check(call.function.name, call.function.arguments)
        with openai.chat.completions.stream(**ask, max_tokens=2000) as stream:
            final = stream.get_final_completion().choices[0]
        told = [(call.function.name, call.function.arguments) for call in final.message.tool_calls or ()]
        assert told == [(call.function.name, call.function.arguments)]
    assert 0 < thought < 6, "the model may think first, and need not"


def test_an_answer_of_a_certain_form_is_in_its_channel(openai: OpenAI) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    form: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    for seed in range(3):
        answer = openai.chat.completions.create(model="oss", messages=_MESSAGES, response_format=form, seed=seed, max_tokens=2000)
        assert json.loads(answer.choices[0].message.content or "")["n"] in (1, 2)


def test_what_a_model_writes_freely_shows_no_mark(openai: OpenAI) -> None:
    for seed in range(3):
        answer = openai.chat.completions.create(model="oss", messages=_MESSAGES, tools=[_SHOW], seed=seed, max_tokens=200)
        no_marks(answer.choices[0].message.model_dump())


def test_responses(openai: OpenAI) -> None:
    tool: Any = {"type": "function", "name": "show", "parameters": _SCHEMA, "strict": False}
    for seed in range(3):
        extra = {"seed": seed}
        whole = openai.responses.create(model="oss", input="Show me Paris", tools=[tool], tool_choice="required", extra_body=extra)
        *thoughts, call = whole.output
        assert all(item.type == "reasoning" for item in thoughts) and call.type == "function_call"
        check(call.name, call.arguments)
        no_marks(whole.model_dump())
        events = openai.responses.create(
            model="oss", input="Show me Paris", tools=[tool], tool_choice="required", extra_body=extra, stream=True
        )
        pieces = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
        assert "".join(pieces) == call.arguments


def test_messages(engine: Engine) -> None:
    with anthropic.Anthropic(base_url=engine.address, api_key="none", max_retries=0) as client:
        tool: Any = {"name": "show", "input_schema": _SCHEMA}
        for seed in range(3):
            ask: Any = {"model": "oss", "messages": _MESSAGES, "tools": [tool], "tool_choice": {"type": "any"}, "max_tokens": 2000}
            answer = client.messages.create(**ask, extra_body={"seed": seed})
            *thoughts, call = answer.content
            assert all(block.type == "thinking" for block in thoughts) and call.type == "tool_use"
            check(call.name, json.dumps(call.input))
            assert answer.stop_reason == "tool_use"
            no_marks(answer.model_dump())
            with client.messages.stream(**ask, extra_body={"seed": seed}) as stream:
                assert stream.get_final_message().content[-1].model_dump()["input"] == call.input


def test_a_conversation_goes_on_with_the_result(openai: OpenAI, engine: Engine) -> None:
    ask: dict[str, Any] = {"model": "oss", "tools": [_SHOW]}
    message = openai.chat.completions.create(**ask, messages=_MESSAGES, tool_choice="required", max_tokens=2000).choices[0].message
    calls: Any = message.tool_calls
    result = {"role": "tool", "tool_call_id": calls[0].id, "content": "map"}
    history = [*_MESSAGES, message.model_dump(exclude_none=True), result]
    openai.chat.completions.create(**ask, messages=history, max_tokens=4)
    with Client(engine.socket) as client:
        output = client.chat(_MESSAGES, tools=[_SHOW], tool_choice="required", max_tokens=2000)
        (told,) = output.outputs[0].tool_calls
        check(told.name, told.arguments)
        no_marks([output.text, output.outputs[0].reasoning])
