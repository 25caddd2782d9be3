"""What users pass, checked before anything travels."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.client.prompts import conversation, pair, to_wire
from frontend.errors import InvalidRequest
from frontend.messages import UNSUPPORTED
from frontend.wire import ChatTurn, Conversation, TextPrompt, TokenPrompt
from protocol.codec import pack_int32
from protocol.params import SamplingParams

PARAMS = SamplingParams(max_tokens=1)
OTHERS = SamplingParams(max_tokens=2)


def test_prompts_of_every_kind() -> None:
    assert to_wire("text") == TextPrompt("text")
    assert (
        to_wire([1, 2]) == to_wire((1, 2)) == to_wire(np.array([1, 2])) == to_wire(range(1, 3)) == TokenPrompt(pack_int32([1, 2]))
    )
    assert to_wire([]) == TokenPrompt(b"")
    assert to_wire([{"role": "user", "content": "hi"}]) == Conversation([ChatTurn("user", "hi")])


@pytest.mark.parametrize(
    "prompt",
    [
        None,
        5,
        1.5,
        [1.5],
        [True],
        ["a"],
        [[1]],
        [None],
        b"bytes",
        {"role": "user"},
        [2**31],
        [-1],
        [2**70],
        pytest.param(10**5000, id="huge"),
        [10**5000],
    ],
)
def test_what_is_no_prompt(prompt: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        to_wire(prompt)
    assert refused.value.param == "prompt"


def test_conversations() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]
    messages: list[dict[str, object]] = [
        {"role": "user", "content": parts, "name": "Ann", "cache_control": {}, "tool_calls": []},
        {"role": "assistant", "content": None, "refusal": None, "annotations": [{}]},
        {"role": "user"},
        {"role": "assistant", "content": "c", "reasoning_content": "hm"},
        {"role": "tool", "content": "", "tool_call_id": "1"},
    ]
    assert conversation(messages).turns == [
        ChatTurn("user", ["a", "b"], "Ann"),
        ChatTurn("assistant", None),
        ChatTurn("user", None),  # the engine's to refuse
        ChatTurn("assistant", "c", reasoning="hm"),
        ChatTurn("tool", "", tool_call_id="1"),
    ]
    open_ended = conversation([{"role": "assistant", "content": "a"}], continue_final_message=True)
    assert (open_ended.add_generation_prompt, open_ended.continue_final_message) == (False, True)


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ("hello", "messages"),
        (None, "messages"),
        (["hello"], "messages[0]"),
        ([{"content": "a"}], "messages[0].role"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": 5}], "messages[1].content"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}], "messages[0].content[1]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": ["a"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": "a", "name": 5}], "messages[0].name"),
        ([{"role": "tool", "content": "a", "tool_call_id": 5}], "messages[0].tool_call_id"),
        *(([{"role": "assistant", "content": "a", name: "x"}], f"messages[0].{name}") for name in UNSUPPORTED),
    ],
)
def test_what_is_no_conversation(messages: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        conversation(messages)
    assert refused.value.param == param


def test_one_set_of_parameters_for_all_or_one_each() -> None:
    assert pair("a", None) == [("a", SamplingParams())]
    assert pair([1, 2], PARAMS) == [([1, 2], PARAMS)]
    mixed: list[str | list[int]] = ["a", [1]]
    assert pair(mixed, [PARAMS, OTHERS]) == [("a", PARAMS), ([1], OTHERS)]
    assert pair(iter(["a", "b"]), PARAMS) == [("a", PARAMS), ("b", PARAMS)]  # type: ignore[arg-type]
    assert pair([], PARAMS) == []
    with pytest.raises(InvalidRequest, match="2 prompts, but 1"):
        pair(["a", "b"], [PARAMS])


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=7), inner, max_size=3),
    max_leaves=8,
)


@given(anything)
def test_whatever_is_passed_is_a_prompt_or_an_invalid_request(value: Any) -> None:
    try:
        assert isinstance(to_wire(value), TextPrompt | TokenPrompt | Conversation)
    except InvalidRequest:
        pass
