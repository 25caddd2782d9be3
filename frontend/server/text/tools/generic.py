"""Tools for models whose templates know none: what they are told, and how calls and results look in their conversations.

Calls are written in Hermes' format, since it is the one that most models have seen.
"""

import json
from collections.abc import Sequence
from typing import Any

from frontend.server.text.fences import Messages

_INSTRUCTIONS = """\
You can call these tools. Each line is the description of one of them, with the JSON schema of its arguments:
<tools>
{tools}
</tools>

To call a tool, write its name and its arguments as JSON between these tags:
<tool_call>
{{"name": "the tool's name", "arguments": {{"argument": "value"}}}}
</tool_call>

The results come between <tool_response> and </tool_response>. When no tool is needed, answer in plain text."""


def without_tools(messages: Messages, tools: Sequence[dict[str, Any]]) -> Messages:
    """A conversation for a template that knows system, user and assistant only; what is about tools becomes text."""
    rewritten: Messages = []
    if tools:
        listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
        rewritten.append({"role": "system", "content": _INSTRUCTIONS.format(tools=listed)})
    for number, message in enumerate(messages):
        role, before = message["role"], rewritten[-1] if rewritten else None
        if role == "system" and before is not None and number == 0:
            before["content"] = f"{_text(message['content'])}\n\n{before['content']}"
        elif role in ("tool", "function"):
            result = f"<tool_response>\n{_text(message['content'])}\n</tool_response>"
            if before is not None and before.get("results"):
                before["content"] += f"\n{result}"
            else:
                rewritten.append({"role": "user", "content": result, "results": True})
        elif calls := message.get("tool_calls"):
            texts = [_text(message["content"]), *map(_written, calls)]
            kept = {key: value for key, value in message.items() if key not in ("tool_calls", "content")}
            rewritten.append({**kept, "content": "\n".join(text for text in texts if text)})
        else:
            rewritten.append(dict(message))
    for message in rewritten:
        message.pop("results", None)
    return rewritten


def without_system(messages: Messages) -> Messages:
    """The same for a template that refuses a system message: the user says it."""
    if len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return messages
    system, user, *others = messages
    return [{**user, "content": f"{_text(system['content'])}\n\n{_text(user['content'])}"}, *others]


def _written(call: dict[str, Any]) -> str:
    function = call["function"]
    name, arguments = json.dumps(function["name"], ensure_ascii=False), function["arguments"]
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {written}}}\n</tool_call>'


def _text(content: str | list[dict[str, str]]) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)
