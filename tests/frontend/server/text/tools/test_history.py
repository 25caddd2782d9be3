"""Tools, calls and results in conversations, as the templates of several families take them."""

from typing import Any

import pytest

from frontend.errors import InvalidRequest
from frontend.server.text.chat import ChatTemplate
from frontend.server.text.conversation import templated
from frontend.server.text.tools.formats import described
from frontend.wire import ChatTurn, ToolCall
from tests.frontend.server.text.tools import families
from tests.frontend.server.text.tools.read import TOOLS

_ASK = ChatTurn("user", "Weather in Paris?")
_CALL = ChatTurn("assistant", None, tool_calls=(ToolCall("call_0123456789ab", "weather", '{"city": "Paris", "days": 2}'),))
_RESULT = ChatTurn("tool", "21 C", tool_call_id="call_0123456789ab")
_DEEP = "[" * 5000
_HISTORY = templated([_ASK, _CALL, _RESULT])


def test_messages_as_templates_take_them() -> None:
    _, call, result = _HISTORY
    function = {"name": "weather", "arguments": {"city": "Paris", "days": 2}}
    assert call["content"] == ""
    assert call["tool_calls"] == [{"id": "call_0123456789ab", "type": "function", "function": function}]
    assert result == {"role": "tool", "content": "21 C", "name": "weather", "tool_call_id": "call_0123456789ab"}


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("", {}),
        ("{}", {}),
        ('{"a": [1.5, null]}', {"a": [1.5, None]}),
        ("{broken", "{broken"),
        ("[1]", "[1]"),
        (_DEEP, _DEEP),
    ],
)
def test_arguments_are_objects_or_what_they_were(given: str, taken: object) -> None:
    (message,) = templated([ChatTurn("assistant", None, tool_calls=(ToolCall("a", "f", given),))])
    assert message["tool_calls"][0]["function"]["arguments"] == taken


def test_only_the_assistant_calls() -> None:
    with pytest.raises(InvalidRequest, match="only the assistant"):
        templated([ChatTurn("user", "a", tool_calls=(ToolCall("a", "f", "{}"),))])


def _rendered(source: str, messages: Any = _HISTORY, **options: Any) -> str:
    return ChatTemplate(source, {}).render(messages, **options)


def test_hermes_and_qwen() -> None:
    text = _rendered(families.HERMES, tools=described(TOOLS))
    assert '{"type": "function", "function": {"name": "now", "description": "What time it is", "parameters": {' in text
    assert text.endswith(
        '<|im_start|>assistant\n<tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>'
        "<|im_end|>\n<|im_start|>user\n<tool_response>\n21 C\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    assert "Tools" not in _rendered(families.HERMES)


def test_llama() -> None:
    text = _rendered(families.LLAMA, tools=described(TOOLS))
    assert '<|assistant|>{"name": "weather", "parameters": {"city": "Paris", "days": 2}}<|eot|><|ipython|>"21 C"' in text
    assert '    "name": "now"' in _rendered(families.LLAMA, templated([_ASK]), tools=described(TOOLS))
    twice = templated([_ASK, ChatTurn("assistant", None, tool_calls=_CALL.tool_calls * 2)])
    with pytest.raises(InvalidRequest, match="one call at once"):
        _rendered(families.LLAMA, twice)


def test_mistral_takes_ids_of_nine_letters_only() -> None:
    text = _rendered(families.MISTRAL)
    start, _, rest = text.partition('[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris", "days": 2}, "id": "')
    assert start == "[INST] Weather in Paris?[/INST]"
    assert rest[:9].isalnum()
    assert rest[9:] == '"}]</s>[TOOL_RESULTS] {"content": 21 C, "call_id": "' + rest[:9] + '"}[/TOOL_RESULTS]'
    own = templated([_ASK, ChatTurn("assistant", None, tool_calls=(ToolCall("abcDEF012", "now", "{}"),))])
    assert '"id": "abcDEF012"' in _rendered(families.MISTRAL, own)
    assert '[AVAILABLE_TOOLS] [{"type"' in _rendered(families.MISTRAL, templated([_ASK]), tools=described(TOOLS))


def test_templates_that_want_texts_and_no_content() -> None:
    assert (
        _rendered(families.TEXT_ARGUMENTS) == '<user>Weather in Paris?<call>weather\n{"city": "Paris", "days": 2}</call><tool>21 C'
    )


def test_a_template_that_knows_no_tools() -> None:
    text = _rendered(families.PLAIN, tools=described(TOOLS), rewrites_tools=True)
    system, _, rest = text.partition("<user>")
    assert system.startswith("<system>You can call these tools.")
    assert '\n{"name": "now", "description": "What time it is", "parameters": {"type": "object", "properties": {}}}\n' in system
    assert rest == (
        'Weather in Paris?<assistant><tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>'
        "<user><tool_response>\n21 C\n</tool_response><assistant>"
    )
    assert _rendered(families.PLAIN, templated([_ASK]), rewrites_tools=True) == "<user>Weather in Paris?<assistant>"


def test_what_is_told_joins_what_the_system_says_and_results_join_each_other() -> None:
    calls = ChatTurn("assistant", ["Let", "me."], tool_calls=(*_CALL.tool_calls, ToolCall("b", "now", "{broken")))
    turns = [ChatTurn("system", ["Be", "brief."]), _ASK, calls, _RESULT, ChatTurn("tool", ["1", "2"], tool_call_id="b")]
    text = _rendered(families.PLAIN, templated(turns), tools=described(TOOLS), rewrites_tools=True, add_generation_prompt=False)
    assert text.startswith("<system>Be\nbrief.\n\nYou can call")
    assert text.count("<system>") == 1
    assert '<assistant>Let\nme.\n<tool_call>\n{"name": "weather"' in text
    assert '{"name": "now", "arguments": {broken}' in text
    assert text.endswith("<user><tool_response>\n21 C\n</tool_response>\n<tool_response>\n1\n2\n</tool_response>")


def test_a_template_without_a_system_has_the_user_say_it() -> None:
    text = _rendered(families.NO_SYSTEM, templated([_ASK]), tools=described(TOOLS), rewrites_tools=True)
    assert text.startswith("<user>You can call these tools.")
    assert text.endswith("\n\nWeather in Paris?")


def test_whether_a_template_takes_tools() -> None:
    known = (families.HERMES, families.LLAMA, families.MISTRAL, families.TEXT_ARGUMENTS)
    assert all(ChatTemplate(source, {}).takes_tools for source in known)
    assert not ChatTemplate(families.PLAIN + "{# tools #} no tools", {}).takes_tools


def test_a_call_is_not_continued() -> None:
    with pytest.raises(InvalidRequest, match="calls tools"):
        _rendered(families.HERMES, _HISTORY[:2], continue_final_message=True, add_generation_prompt=False)


def test_gpt_oss() -> None:
    text = _rendered(families.HARMONY, tools=described(TOOLS))
    assert 'type weather = (_: {\ncity: string,\ndays?: number,\nunit?: "c" | "f",\nnear?: any,\n}) => any;' in text
    assert text.endswith(
        "<|start|>user<|message|>Weather in Paris?<|end|>"
        "<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>"
        '{"city": "Paris", "days": 2}<|call|><|start|>functions.weather to=assistant<|channel|>commentary<|message|>"21 C"<|end|>'
        "<|start|>assistant"
    )
    assert "Reasoning: high" in _rendered(families.HARMONY, arguments={"reasoning_effort": "high"})


def test_gpt_oss_takes_thoughts_by_its_own_name_and_one_text_beside_a_call() -> None:
    (call,) = _CALL.tool_calls
    thought = ChatTurn("assistant", None, reasoning="I look.", tool_calls=(call,))
    text = _rendered(families.HARMONY, templated([_ASK, thought, _RESULT]))
    assert "<|channel|>analysis<|message|>I look.<|end|><|start|>assistant to=functions.weather" in text
    both = ChatTurn("assistant", ["Let me", "see."], reasoning="I look.", tool_calls=(call,))
    text = _rendered(families.HARMONY, templated([_ASK, both, _RESULT]))
    assert "<|channel|>analysis<|message|>I look.\n\nLet me\nsee.<|end|>" in text
    done = ChatTurn("assistant", "21 C.", reasoning="So it is.")
    assert "So it is." not in _rendered(families.HARMONY, templated([_ASK, thought, _RESULT, done, _ASK]))
    opened = _rendered(families.HARMONY, templated([_ASK, done]), add_generation_prompt=False, continue_final_message=True)
    assert opened.endswith("So it is.<|end|><|start|>assistant<|channel|>final<|message|>21 C.")


def test_several_calls_where_a_template_shows_one_of_each_answer() -> None:
    calls = (ToolCall("a", "weather", '{"city": "Paris"}'), ToolCall("b", "now", "{}"))
    turns = [
        _ASK,
        ChatTurn("assistant", None, reasoning="Both.", tool_calls=calls),
        ChatTurn("tool", "12:00", tool_call_id="b"),
        ChatTurn("tool", "21 C", tool_call_id="a"),
    ]
    text = _rendered(families.HARMONY, templated(turns))
    _, _, behind = text.partition("<|channel|>analysis<|message|>Both.<|end|>")
    assert behind == (
        '<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>{"city": "Paris"}<|call|>'
        '<|start|>functions.weather to=assistant<|channel|>commentary<|message|>"21 C"<|end|>'
        "<|start|>assistant to=functions.now<|channel|>commentary json<|message|>{}<|call|>"
        '<|start|>functions.now to=assistant<|channel|>commentary<|message|>"12:00"<|end|><|start|>assistant'
    )
    assert _rendered(families.HERMES, templated(turns)).count("<|im_start|>assistant") == 2  # whose template shows both in one
