"""The messages of a conversation, checked and put into the form that chat templates take."""

from collections.abc import Sequence
from typing import Any

import msgspec

from frontend.errors import InvalidRequest
from frontend.server.text.fences import Messages
from frontend.wire import ChatTurn, ToolCall

_DEEPEST = 64  # levels of a call's arguments; deeper ones are told as the text that they were

# What a client may call a role -> what templates call it. "developer" is OpenAI's newer name for "system".
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "function",
}


def templated(turns: Sequence[ChatTurn]) -> Messages:
    """Messages as templates take them. Raises InvalidRequest naming the message at fault: nothing is left out or made up."""
    names = {call.id: call.name for turn in turns for call in turn.tool_calls}
    return [_message(turn, names, f"messages[{index}]") for index, turn in enumerate(turns)]


def _message(turn: ChatTurn, names: dict[str, str], where: str) -> dict[str, Any]:
    """`names`: of the tools that were called, by the ids of the calls."""
    role = _ROLES.get(turn.role)
    if role is None:
        raise InvalidRequest(f"the role {turn.role[:50]!r} is none of {', '.join(_ROLES)}", f"{where}.role")
    content: str | list[dict[str, str]] = ""
    if turn.content:
        content = turn.content if isinstance(turn.content, str) else [{"type": "text", "text": text} for text in turn.content]
    elif turn.content != "" and role != "assistant":  # an answer may be without text, for what it called is beside it
        raise InvalidRequest(f"{where}.content: a message of the role {turn.role} needs a content", f"{where}.content")
    message: dict[str, Any] = {"role": role, "content": content}
    name = names.get(turn.tool_call_id or "") if turn.name is None else turn.name
    if name is not None:
        message["name"] = name
    if turn.tool_call_id is not None:
        message["tool_call_id"] = turn.tool_call_id
    if turn.reasoning is not None:  # templates know it by either name
        message |= {"reasoning": turn.reasoning, "reasoning_content": turn.reasoning}
    if turn.tool_calls:
        if role != "assistant":
            raise InvalidRequest(f"{where}.tool_calls: only the assistant calls tools", f"{where}.tool_calls")
        message["tool_calls"] = [_call(call) for call in turn.tool_calls]
    return message


def _call(call: ToolCall) -> dict[str, Any]:
    """Templates take the arguments as an object, not as its JSON. What is none stays a text: it was so in the answer."""
    arguments: object = call.arguments
    try:
        value = msgspec.json.decode(call.arguments or "{}")
        if isinstance(value, dict) and _is_shallow(value):
            arguments = value
    except (msgspec.DecodeError, RecursionError):
        pass
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _is_shallow(value: object) -> bool:
    """Whether JSON is not nested deeper than what walks over it can follow."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            part for item in level for part in (item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
        ]
        if not level:
            return True
    return False
