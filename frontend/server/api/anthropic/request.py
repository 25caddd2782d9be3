"""The body of POST /v1/messages, and the chat that it asks for."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, ClassVar

import msgspec

from frontend.errors import InvalidRequest
from frontend.server.api.as_chat import given, unsupported

_ABSENT = msgspec.Raw(b"")


class TextBlock(msgspec.Struct, frozen=True):
    """A text, within the result of a tool or a system prompt. Other types are refused."""

    type: str
    text: str | None = None


class Block(msgspec.Struct, frozen=True):
    """A part of a message: `text`, `tool_use`, `tool_result`, `thinking`. `redacted_thinking` is ignored, others are refused."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: msgspec.Raw = _ABSENT
    tool_use_id: str | None = None
    content: str | list[TextBlock] | None = None


class InputMessage(msgspec.Struct, frozen=True):
    """One message of a conversation: of `user`, `assistant` or `system`."""

    role: str
    content: str | list[Block]


class Tool(msgspec.Struct, frozen=True):
    """A tool that the model may call. Those of other types than `custom` are refused."""

    name: str
    description: str | None = None
    input_schema: msgspec.Raw = _ABSENT
    type: str | None = None
    strict: bool | None = None


class ToolChoice(msgspec.Struct, frozen=True):
    """`auto`, `any`, `none`, or `tool` with a name."""

    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct, frozen=True):
    """Whether the model thinks before it answers: `enabled`, `adaptive` or `disabled`."""

    type: str


class OutputFormat(msgspec.Struct, frozen=True):
    """{"type": "json_schema", "schema": …}."""

    type: str
    schema: msgspec.Raw = _ABSENT


class OutputConfig(msgspec.Struct, frozen=True):
    """What the answer has to be, and how much the model thinks."""

    format: OutputFormat | None = None
    effort: str | None = None


class CountRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/messages/count_tokens."""

    messages: list[InputMessage]
    model: str | None = None
    system: str | list[TextBlock] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    mcp_servers: msgspec.Raw = _ABSENT
    container: msgspec.Raw = _ABSENT

    unsupported: ClassVar[tuple[str, ...]] = ("mcp_servers", "container")


class MessagesRequest(CountRequest, frozen=True, kw_only=True):
    """POST /v1/messages."""

    max_tokens: int
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None  # as in chats; Anthropic has none
    stream: bool | None = None


# What the fields of chats are called here.
NAMES = (
    (r"stop\b", "stop_sequences"),
    (r"(response_format|structured_outputs)\b", "output_config.format"),
    (r"reasoning_effort\b", "output_config.effort"),
    (r"(tools\[\d+\])\.function\.parameters", r"\1.input_schema"),
    (r"(tools\[\d+\])\.function", r"\1"),
)

_SAME = ("temperature", "top_p", "top_k", "seed", "stream")
_ROLES = ("user", "assistant", "system")
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_body(asked: CountRequest) -> tuple[dict[str, Any], list[str]]:
    """The body of the chat that is asked for, and where each of its messages came from.

    Raises InvalidRequest or ApiError naming the block that cannot be a part of one.
    """
    messages = list(_messages(asked))
    body: dict[str, Any] = {"messages": [message for _, message in messages]}
    if asked.messages and asked.messages[-1].role == "assistant" and "tool_calls" not in messages[-1][1]:
        body |= {"continue_final_message": True, "add_generation_prompt": False}  # the answer goes on in what it begins with
    if asked.tools:
        body["tools"] = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(asked.tools)]
    if (choice := asked.tool_choice) is not None:
        body["tool_choice"] = _choice(choice)
        if choice.disable_parallel_tool_use:
            body["parallel_tool_calls"] = False
    if asked.thinking is not None:
        body["chat_template_kwargs"] = {"enable_thinking": asked.thinking.type != "disabled"}
    if (config := asked.output_config) is not None:
        if config.effort is not None:
            body["reasoning_effort"] = config.effort
        if config.format is not None:
            body["response_format"] = _format(config.format)
    if isinstance(asked, MessagesRequest):
        body |= {name: value for name in _SAME if (value := getattr(asked, name)) is not None}
        body["max_tokens"] = asked.max_tokens
        if asked.stop_sequences:
            body["stop"] = asked.stop_sequences
    return body, [where for where, _ in messages]


def _messages(asked: CountRequest) -> Iterator[tuple[str, dict[str, Any]]]:
    """The messages of the chat, and where each came from."""
    if asked.system:
        yield "system", {"role": "system", "content": _texts(asked.system)}
    for index, message in enumerate(asked.messages):
        if message.role not in _ROLES:
            at = f"messages[{index}].role"
            raise InvalidRequest(f"{at} is {message.role[:50]!r}, none of {', '.join(_ROLES)}", at)
    for role, group in groupby(enumerate(asked.messages), lambda numbered: numbered[1].role):
        numbered = list(group)  # messages of the same role that follow each other are one
        where, (_, first) = f"messages[{numbered[0][0]}]", numbered[0]
        if len(numbered) == 1 and isinstance(first.content, str):
            yield where, {"role": role, "content": first.content}
            continue
        blocks = [placed for index, message in numbered for placed in _blocks(message, f"messages[{index}].content")]
        if role == "assistant":
            yield where, _of_assistant(blocks)
        else:
            yield from _of_others(role, blocks, where)


def _blocks(message: InputMessage, where: str) -> list[tuple[str, Block]]:
    """The blocks of a message, and the place of each."""
    if isinstance(message.content, str):
        return [(where, Block("text", text=message.content))]
    return [(f"{where}[{index}]", block) for index, block in enumerate(message.content)]


def _of_others(role: str, blocks: Sequence[tuple[str, Block]], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Results of tools are messages of their own; the texts between two of them are one."""
    texts: list[dict[str, Any]] = []
    for at, block in blocks:
        if block.type == "tool_result" and role == "user":
            if texts:
                yield where, {"role": role, "content": texts}
                texts = []
            result = "" if block.content is None else _texts(block.content)
            yield at, {"role": "tool", "tool_call_id": given(block.tool_use_id, f"{at}.tool_use_id"), "content": result}
        else:
            texts.append(_text(block, at))
    if texts or not blocks:
        yield where, {"role": role, "content": texts}


def _of_assistant(blocks: Sequence[tuple[str, Block]]) -> dict[str, Any]:
    texts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    thoughts: list[str] = []
    for at, block in blocks:
        match block.type:
            case "tool_use":
                arguments = bytes(block.input).decode() or "{}"
                function = {"name": given(block.name, f"{at}.name"), "arguments": arguments}
                calls.append({"id": given(block.id, f"{at}.id"), "type": "function", "function": function})
            case "thinking":
                thoughts.append(block.thinking or "")
            case "redacted_thinking":
                pass
            case _:
                texts.append(_text(block, at))
    message: dict[str, Any] = {"role": "assistant", "content": texts or None}
    if calls:
        message["tool_calls"] = calls
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    return message


def _text(block: Block, where: str) -> dict[str, Any]:
    if block.type != "text":
        raise unsupported(f"{where}: a block of type {block.type[:50]!r} is not supported here", where)
    return {"type": "text", "text": given(block.text, f"{where}.text")}


def _texts(content: str | list[TextBlock]) -> str | list[dict[str, Any]]:
    """A content as chats have it; what is no text there is refused there."""
    return content if isinstance(content, str) else [{"type": block.type, "text": block.text} for block in content]


def _tool(tool: Tool, where: str) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        raise unsupported(f"{where}: a tool of type {tool.type[:50]!r} is not supported, only your own", where)
    function: dict[str, Any] = {"name": tool.name, "description": tool.description, "strict": tool.strict}
    if bytes(tool.input_schema):
        function["parameters"] = tool.input_schema
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


def _choice(choice: ToolChoice) -> str | dict[str, Any]:
    if choice.type == "tool":
        return {"type": "function", "function": {"name": given(choice.name, "tool_choice.name")}}
    if choice.type not in _CHOICES:
        raise InvalidRequest(f"tool_choice.type is {choice.type[:50]!r}, none of auto, any, tool, none", "tool_choice.type")
    return _CHOICES[choice.type]


def _format(format: OutputFormat) -> dict[str, Any]:
    if format.type != "json_schema":
        raise unsupported(f"output_config.format of type {format.type[:50]!r} is not supported", "output_config.format")
    schema: dict[str, Any] = {"name": "answer"}
    if bytes(format.schema):
        schema["schema"] = format.schema
    return {"type": "json_schema", "json_schema": schema}
