"""Prompts as users write them, checked and put into the wire's form."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypeGuard

import msgspec
import numpy as np
import numpy.typing as npt

from frontend.errors import InvalidRequest
from frontend.messages import TEXT_PARTS, UNSUPPORTED, no_text, unsupported
from frontend.tools import check_tools
from frontend.wire import ChatTurn, Conversation, TextPrompt, TokenPrompt, Tool, ToolCall
from frontend.wire import Prompt as WirePrompt
from protocol.codec import pack_int32
from protocol.params import SamplingParams

TokenIds: TypeAlias = Sequence[int] | npt.NDArray[np.integer[Any]]
Messages: TypeAlias = Sequence[Mapping[str, object]]  # {"role": …, "content": text, or a list of {"type": "text", "text": …}}
Prompt: TypeAlias = str | TokenIds | Messages
Prompts: TypeAlias = str | TokenIds | Sequence[str] | Sequence[TokenIds] | Sequence[str | TokenIds]

Tools: TypeAlias = Sequence[Mapping[str, object]]  # {"name", "description", "parameters": a JSON schema}, or as OpenAI has it

_INT32_MAX = 2**31 - 1


class _Function(msgspec.Struct):
    """A function as users write it."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] = {}
    strict: bool = False


def to_wire(prompt: Prompt | Conversation, add_special_tokens: bool = True) -> WirePrompt:
    """A text, token ids or a conversation. Raises InvalidRequest when it is none of them."""
    if isinstance(prompt, Conversation):
        return prompt
    if isinstance(prompt, str):
        return TextPrompt(str.__str__(prompt), add_special_tokens)  # numpy's strings, and others, are more than that
    if _is_conversation(prompt):
        return conversation(prompt)
    try:
        token_ids = np.asarray(prompt)
    except (ValueError, TypeError, OverflowError) as error:
        raise _no_prompt(prompt) from error
    if token_ids.ndim != 1 or (token_ids.dtype.kind not in "iu" and token_ids.size):  # an empty list is the engine's to refuse
        raise _no_prompt(prompt)
    if token_ids.size and not 0 <= token_ids.min() <= token_ids.max() <= _INT32_MAX:
        raise InvalidRequest("the prompt holds token ids outside the vocabulary", "prompt")
    return TokenPrompt(pack_int32(token_ids))


def conversation(
    messages: Messages,
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    tools: Tools = (),
    tool_choice: str = "auto",
    parallel_tool_calls: bool = True,
) -> Conversation:
    """Messages with "role" and "content", and functions that the model may call. Raises InvalidRequest naming what is at fault."""
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        raise InvalidRequest("messages must be a list of {'role': …, 'content': …}", "messages")
    turns = [_turn(message, f"messages[{index}]") for index, message in enumerate(messages)]
    if not isinstance(tool_choice, str):
        raise InvalidRequest("tool_choice is auto, none, required or the name of a function", "tool_choice")
    return Conversation(
        turns,
        bool(add_generation_prompt and not continue_final_message),
        bool(continue_final_message),
        tools=_tools(tools or ()),
        tool_choice=tool_choice,
        parallel_tool_calls=bool(parallel_tool_calls),
    )


def _tools(tools: Tools) -> tuple[Tool, ...]:
    """Functions by themselves, or as {"type": "function", "function": …}."""
    found = []
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        given = tool.get("function", tool) if isinstance(tool, Mapping) else tool
        try:
            found.append(Tool(**msgspec.structs.asdict(msgspec.convert(given, _Function))))
        except (msgspec.ValidationError, UnicodeEncodeError) as error:
            raise InvalidRequest(
                f"{where} is a function with a name and a JSON schema of its parameters: {error}", where
            ) from error
    check_tools(found)
    return tuple(found)


def _calls(message: Mapping[str, object], where: str) -> tuple[ToolCall, ...]:
    """The calls of an answer of the past, as OpenAI's clients keep them, or as this one brought them."""
    calls = message.get("tool_calls") or ()
    found = []
    for index, call in enumerate(calls if isinstance(calls, Sequence) and not isinstance(calls, str) else (None,)):
        if isinstance(call, ToolCall):
            found.append(call)
            continue
        fields = call if isinstance(call, Mapping) else {}
        function = fields.get("function", fields)
        name, arguments = (function.get(key) for key in ("name", "arguments")) if isinstance(function, Mapping) else (None, None)
        if isinstance(arguments, Mapping) or arguments is None:
            arguments = msgspec.json.encode(arguments or {}).decode()
        identity = fields.get("id") or f"call_{index}"
        if not isinstance(name, str) or not isinstance(arguments, str) or not isinstance(identity, str):
            here = f"{where}.tool_calls[{index}]"
            raise InvalidRequest(f"{here} needs a function with name and arguments", here)
        found.append(ToolCall(identity, name, arguments))
    return tuple(found)


def _turn(message: Mapping[str, object], where: str) -> ChatTurn:
    if not isinstance(message, Mapping):
        raise InvalidRequest(f"{where} must be a mapping with role and content, not {type(message).__name__}", where)
    for name in UNSUPPORTED:
        if message.get(name):
            raise unsupported(name, where)
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise InvalidRequest(f"{where} needs a role", f"{where}.role")
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = [_text_of(part, f"{where}.content[{index}]") for index, part in enumerate(content)]
    if not isinstance(content, str | list | None):
        raise InvalidRequest(f"{where} needs a text as its content", f"{where}.content")
    reasoning_key = "reasoning_content" if message.get("reasoning") is None else "reasoning"
    called, reasoning, tool_call_id = (_optional(message, key, where) for key in ("name", reasoning_key, "tool_call_id"))
    return ChatTurn(role, content, called, reasoning, tool_call_id, _calls(message, where))


def _text_of(part: object, where: str) -> str:
    fields = part if isinstance(part, Mapping) else {}
    kind, text = fields.get("type"), fields.get("text")
    if kind not in TEXT_PARTS or not isinstance(text, str):
        raise no_text(kind if isinstance(kind, str) else type(part).__name__, where)
    return text


def _optional(message: Mapping[str, object], name: str, where: str) -> str | None:
    value = message.get(name)
    if not isinstance(value, str | None):
        raise InvalidRequest(f"{where} has a {name} that is no text", f"{where}.{name}")
    return value


def pair(prompts: Prompts, params: SamplingParams | Sequence[SamplingParams] | None) -> list[tuple[Prompt, SamplingParams]]:
    """Each prompt with its parameters: one set for all, or one each. Raises InvalidRequest when the numbers differ."""
    if not isinstance(prompts, Iterable) or isinstance(prompts, Mapping):
        raise _no_prompt(prompts)
    single = isinstance(prompts, str) or _is_token_ids(prompts)
    several: list[Prompt] = [prompts] if single else list(prompts)  # type: ignore[list-item, arg-type]
    if params is None or isinstance(params, SamplingParams):
        return [(prompt, params or SamplingParams()) for prompt in several]
    sets = list(params)
    if len(sets) != len(several):
        raise InvalidRequest(f"{len(several)} prompts, but {len(sets)} sets of parameters", "params")
    return list(zip(several, sets, strict=True))


def _is_conversation(prompt: TokenIds | Messages) -> TypeGuard[Messages]:
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def _is_token_ids(prompts: object) -> bool:
    if isinstance(prompts, np.ndarray):
        return prompts.ndim == 1
    return isinstance(prompts, Sequence) and len(prompts) > 0 and isinstance(prompts[0], int | np.integer)


def _no_prompt(prompt: object) -> InvalidRequest:
    kind = type(prompt).__name__
    if isinstance(prompt, Sequence) and prompt:
        kind += f" of {type(prompt[0]).__name__}"
    return InvalidRequest(f"a prompt is a text, a list of token ids or a list of messages, not {kind}", "prompt")
