"""Calls in the messages of a conversation, in the form that a template takes."""

import hashlib
import json
import re
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

from frontend.errors import InvalidRequest
from frontend.server.text.fences import Messages

_SHORT = re.compile(r"[a-zA-Z0-9]{9}")


class CallForm(NamedTuple):
    """What a template wants of calls. Most go by Hugging Face's convention, which is the default."""

    arguments_as_text: bool = False  # their JSON instead of an object
    no_content: bool = False  # None where an answer has no text, instead of an empty one
    short_ids: bool = False  # of nine letters and digits, as Mistral's
    one_each: bool = False  # it shows the first call of an answer and leaves out the others, as gpt-oss's

    @classmethod
    def found(cls, render: Callable[[Messages], str]) -> "CallForm":
        """The first form in which the template shows a call, its arguments as JSON."""
        for form in (cls(*choices) for choices in product((False, True), repeat=3)):
            try:
                text = render(with_calls(_TRIAL, form))
            except InvalidRequest:
                continue
            if "trial_name" in text and '"trial_key"' in text and "'trial_key'" not in text:
                return form._replace(one_each=_leaves_out(render, form))
        return cls()


def _leaves_out(render: Callable[[Messages], str], form: CallForm) -> bool:
    """Whether the second of two calls is not shown, and nothing is said against it."""
    user, answer, result = _TRIAL
    (call,) = answer["tool_calls"]
    second = {**call, "id": "second_call", "function": {**call["function"], "name": "second_name"}}
    results = [result, {**result, "name": "second_name", "tool_call_id": "second_call"}]
    try:
        return "second_name" not in render(with_calls([user, {**answer, "tool_calls": [call, second]}, *results], form))
    except InvalidRequest:
        return False


_TRIAL: Messages = [
    {"role": "user", "content": "Hello"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "call_of_trial", "type": "function", "function": {"name": "trial_name", "arguments": {"trial_key": "value"}}}
        ],
    },
    {"role": "tool", "content": "result", "name": "trial_name", "tool_call_id": "call_of_trial"},
]


def with_calls(messages: Messages, form: CallForm) -> Messages:
    """The messages with calls in that form."""
    if form.one_each:
        messages = _one_call_each(messages)
    return [_with_calls(message, form) for message in messages]


def with_thinking(messages: Messages) -> Messages:
    """The messages for a template that knows thoughts as `thinking`, and takes either these or a text beside a call."""
    return [_with_thinking(message, message["reasoning"]) if message.get("reasoning") else message for message in messages]


def _with_thinking(message: dict[str, Any], thoughts: str) -> dict[str, Any]:
    content = message["content"]
    text = content if isinstance(content, str) else "\n".join(part["text"] for part in content)
    if not message.get("tool_calls") or not text:
        return {**message, "thinking": thoughts}
    return {**message, "thinking": f"{thoughts}\n\n{text}", "content": ""}


def _one_call_each(messages: Messages) -> Messages:
    """An answer with several calls as several answers, each with the result of its call behind it."""
    split: Messages = []
    place = 0
    while place < len(messages):
        message = messages[place]
        place += 1
        calls = message.get("tool_calls", ())
        if len(calls) < 2:
            split.append(message)
            continue
        results = []
        while place < len(messages) and messages[place]["role"] == "tool":
            results.append(messages[place])
            place += 1
        for index, call in enumerate(calls):
            said = message if index == 0 else {"role": message["role"], "content": ""}
            split.append({**said, "tool_calls": [call]})
            split += [result for result in results if result.get("tool_call_id") == call["id"]]
        of_calls = {call["id"] for call in calls}
        split += [result for result in results if result.get("tool_call_id") not in of_calls]
    return split


def _with_calls(message: dict[str, Any], form: CallForm) -> dict[str, Any]:
    if "tool_call_id" in message and form.short_ids:
        message = {**message, "tool_call_id": _short(message["tool_call_id"])}
    if "tool_calls" not in message:
        return message
    calls = [_in_form(call, form) for call in message["tool_calls"]]
    content = None if form.no_content and not message["content"] else message["content"]
    return {**message, "content": content, "tool_calls": calls}


def _in_form(call: dict[str, Any], form: CallForm) -> dict[str, Any]:
    function = call["function"]
    if form.arguments_as_text and not isinstance(function["arguments"], str):
        function = {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}
    return {**call, "id": _short(call["id"]) if form.short_ids else call["id"], "function": function}


def _short(call_id: str) -> str:
    return call_id if _SHORT.fullmatch(call_id) else hashlib.sha256(call_id.encode(errors="replace")).hexdigest()[:9]
