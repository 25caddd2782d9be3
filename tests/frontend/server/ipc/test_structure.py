"""Large frames are looked at before anything is made of them."""

from collections.abc import Callable

import msgspec
import pytest

from frontend.server.ipc.incoming import read_frame
from frontend.server.ipc.structure import is_too_much, length
from frontend.wire import MOST_MESSAGES, Ask, ChatTurn, Conversation, Refused, Submit, TextPrompt, Tool, ToolCall, frames
from protocol.codec import encode
from protocol.errors import ProtocolError
from protocol.params import SamplingParams

_HEAD = 4  # bytes of a frame's length


def _frame(*prompts: Conversation | TextPrompt) -> bytes:
    return encode([Submit(7 + index, prompt, SamplingParams()) for index, prompt in enumerate(prompts)])


def _many(count: int) -> dict[str, Conversation]:
    turn, call = ChatTurn("user", "a"), ToolCall("a", "b", "{}")
    return {
        "turns": Conversation([turn] * count),
        "parts": Conversation([ChatTurn("user", ["a"] * count)]),
        "calls": Conversation([ChatTurn("assistant", None, tool_calls=(call,) * count)]),
        "tools": Conversation([turn], tools=(Tool("f"),) * count),
    }


@pytest.mark.parametrize("kind", list(_many(0)))
def test_what_a_conversation_is_made_of_is_counted(kind: str) -> None:
    few, many = _frame(_many(900)[kind]), _frame(_many(1100)[kind])
    assert not is_too_much(few, 1000)
    assert is_too_much(many, 1000)
    assert is_too_much(_frame(*[_many(600)[kind]] * 2), 1000), "all of a frame together"


def test_a_large_frame_of_many_things_is_refused_by_its_number() -> None:
    lists: Callable[[int], Conversation] = lambda count: Conversation([], tools=(Tool("f", None, {"a": [[]] * count}),))  # noqa: E731
    for prompt in (Conversation([ChatTurn("u", "")] * 200_000), lists(300_000)):
        (refused,) = read_frame(_frame(prompt))
        assert isinstance(refused, Refused)
        assert (refused.request_id, refused.kind, refused.param) == (7, "invalid", "prompt")
    (taken,) = read_frame(_frame(lists(100_000)))
    assert isinstance(taken, Submit)


def test_long_texts_are_not_many_things() -> None:
    long = "äöü[{:" * 200_000
    messages = read_frame(_frame(TextPrompt(long), Conversation([ChatTurn("user", [long])], tools=(Tool("f", long),))))
    assert [type(message) for message in messages] == [Submit, Submit]


def test_our_own_frames_hold_no_more_messages_than_are_taken() -> None:
    data, counts = frames([encode(Ask(number, "health")) for number in range(2 * MOST_MESSAGES + 5)]), []
    while data:
        size = int.from_bytes(data[:_HEAD], "little")
        counts.append(len(read_frame(data[_HEAD : _HEAD + size])))
        data = data[_HEAD + size :]
    assert counts == [MOST_MESSAGES, MOST_MESSAGES, 5]
    with pytest.raises(ProtocolError, match="messages"):
        read_frame(encode([Ask(1, "health")] * (MOST_MESSAGES + 1)))


@pytest.mark.parametrize("count", [0, 1, 15, 16, 65_535, 65_536])
def test_an_array_tells_its_length(count: int) -> None:
    assert length(encode([None] * count)) == count
    assert length(msgspec.Raw(encode([None] * count))) == count
    assert length(encode("a" * count)) == 0
