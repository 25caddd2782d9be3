"""Messages are taken as they are, or refused by name."""

import pytest

from frontend.errors import InvalidRequest
from frontend.server.text.conversation import templated
from frontend.wire import ChatTurn


def test_what_templates_get() -> None:
    turns = [
        ChatTurn("developer", "Be brief"),
        ChatTurn("user", ["a", ""], "Ann"),
        ChatTurn("assistant", None),
        ChatTurn("assistant", "Well", reasoning="hm"),
        ChatTurn("tool", "", tool_call_id="call-1"),
    ]
    assert templated(turns) == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": ""}], "name": "Ann"},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": "Well", "reasoning": "hm", "reasoning_content": "hm"},
        {"role": "tool", "content": "", "tool_call_id": "call-1"},
    ]


@pytest.mark.parametrize("role", ["system", "developer", "user", "tool", "function"])
@pytest.mark.parametrize("content", [None, []])
def test_only_an_answer_may_have_no_content(role: str, content: list[str] | None) -> None:
    with pytest.raises(InvalidRequest, match=rf"messages\[1\].content: .* {role} needs") as refused:
        templated([ChatTurn("user", "Hi"), ChatTurn(role, content)])
    assert refused.value.param == "messages[1].content"


@pytest.mark.parametrize("role", ["", "User", "wizard", "tools"])
def test_a_role_that_nobody_knows(role: str) -> None:
    with pytest.raises(InvalidRequest, match="is none of system, developer") as refused:
        templated([ChatTurn(role, "Hi")])
    assert refused.value.param == "messages[0].role"
