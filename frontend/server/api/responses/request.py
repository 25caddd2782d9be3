"""The body of POST /v1/responses, and the chat that it asks for."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import msgspec

from frontend.errors import InvalidRequest
from frontend.server.api.as_chat import given, unsupported

_ABSENT = msgspec.Raw(b"")

MAX_METADATA = 16  # entries, of 64 and 512 characters, as at OpenAI
_LOGPROBS = "message.output_text.logprobs"


class Part(msgspec.Struct, frozen=True):
    """One part of a content."""

    type: str
    text: str | None = None


class InputItem(msgspec.Struct, frozen=True):
    """A message, a call of a tool, what came of a call, or what the model thought. Other types are refused."""

    type: str = "message"
    role: str | None = None
    content: str | list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None


class FunctionTool(msgspec.Struct, frozen=True):
    """A function that the model may call. Tools of other types are refused."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: msgspec.Raw = _ABSENT
    strict: bool | None = None


class ToolName(msgspec.Struct, frozen=True):
    """One of the tools."""

    type: str = "function"
    name: str | None = None


class ToolChoice(msgspec.Struct, frozen=True):
    """{"type": "function", "name": …}, or {"type": "allowed_tools", "mode": …, "tools": […]}."""

    type: str
    name: str | None = None
    mode: str | None = None
    tools: list[ToolName] = []


class TextFormat(msgspec.Struct, frozen=True):
    """{"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "name": …, "schema": …}."""

    type: str
    name: str | None = None
    description: str | None = None
    schema: msgspec.Raw = _ABSENT
    strict: bool | None = None


class TextOptions(msgspec.Struct, frozen=True):
    """What the text of the answer has to be."""

    format: TextFormat | None = None


class ReasoningOptions(msgspec.Struct, frozen=True):
    """How much the model thinks."""

    effort: str | None = None


class ResponsesRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/responses."""

    input: str | list[InputItem]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    stream: bool | None = None
    # Beyond OpenAI's, with the names and meanings that they have in chats.
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    skip_special_tokens: bool | None = None
    priority: int | None = None
    cache_salt: str | None = None

    previous_response_id: msgspec.Raw = _ABSENT
    conversation: msgspec.Raw = _ABSENT
    background: msgspec.Raw = _ABSENT
    prompt: msgspec.Raw = _ABSENT

    unsupported: ClassVar[tuple[str, ...]] = ("previous_response_id", "conversation", "background", "prompt")

    @property
    def wants_logprobs(self) -> bool:
        """Whether the answer tells log-probabilities."""
        return bool(self.top_logprobs) or _LOGPROBS in (self.include or ())


_SAME = (
    *(
        "temperature",
        "top_p",
        "parallel_tool_calls",
        "top_k",
        "min_p",
        "seed",
        "stop",
        "stop_token_ids",
        "min_tokens",
        "ignore_eos",
    ),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "skip_special_tokens", "priority", "cache_salt", "stream"),
)

# What the fields of chats are called here.
NAMES = (
    (r"max_(completion_)?tokens\b", "max_output_tokens"),
    (r"(response_format|structured_outputs)\b", "text.format"),
    (r"reasoning_effort\b", "reasoning.effort"),
    (r"(tools\[\d+\])\.function", r"\1"),
    (r"messages\b", "input"),
)


def check(asked: ResponsesRequest) -> None:
    """Raises InvalidRequest on what the chat that is made of it would not refuse."""
    metadata = asked.metadata or {}
    if len(metadata) > MAX_METADATA or any(len(key) > 64 or len(value) > 512 for key, value in metadata.items()):
        raise InvalidRequest(f"metadata: at most {MAX_METADATA} entries, keys of 64 and values of 512 characters", "metadata")
    for index, tool in enumerate(asked.tools or ()):
        if tool.type != "function":
            raise unsupported(
                f"tools[{index}]: a tool of type {tool.type[:50]!r} is not supported, only functions", f"tools[{index}]"
            )
    choice = asked.tool_choice
    if isinstance(choice, ToolChoice) and choice.type not in ("function", "allowed_tools"):
        raise unsupported(f"tool_choice of type {choice.type[:50]!r} is not supported", "tool_choice")


def chat_body(asked: ResponsesRequest) -> tuple[dict[str, Any], list[str]]:
    """The body of the chat that is asked for, and where each of its messages came from.

    Raises InvalidRequest or ApiError naming the item that cannot be a part of one.
    """
    body: dict[str, Any] = {name: value for name in _SAME if (value := getattr(asked, name)) is not None}
    messages = list(_messages(asked))
    body["messages"] = [message for _, message in messages]
    if asked.max_output_tokens is not None:
        body["max_completion_tokens"] = asked.max_output_tokens
    if asked.wants_logprobs:
        body |= {"logprobs": True, "top_logprobs": asked.top_logprobs or 0}
    if asked.tools:
        body["tools"] = [{"type": "function", "function": _function(tool)} for tool in asked.tools]
    if asked.tool_choice is not None:
        body["tool_choice"] = _choice(asked.tool_choice)
    if asked.text is not None and asked.text.format is not None:
        body["response_format"] = _format(asked.text.format)
    if asked.reasoning is not None and asked.reasoning.effort is not None:
        body["reasoning_effort"] = asked.reasoning.effort
    return body, [where for where, _ in messages]


def _messages(asked: ResponsesRequest) -> Iterator[tuple[str, dict[str, Any]]]:
    """The messages, and where each came from."""
    if asked.instructions:
        yield "instructions", {"role": "system", "content": asked.instructions}
    if isinstance(asked.input, str):
        yield "input", {"role": "user", "content": asked.input}
        return
    begun = ""
    answer: dict[str, Any] = {}  # the assistant's message that is being put together: thoughts, then a text, then calls
    for index, item in enumerate(asked.input):
        where = f"input[{index}]"
        is_answer = item.type in ("reasoning", "function_call") or (item.type == "message" and item.role == "assistant")
        if not is_answer or (item.type != "function_call" and _says(answer)):
            if _says(answer):
                yield begun, answer
            answer = {}
        if is_answer and not answer:
            begun = where
        match item.type:
            case "reasoning":
                if thoughts := _texts(item.content):
                    answer |= {"role": "assistant", "reasoning_content": answer.get("reasoning_content", "") + thoughts}
            case "function_call":
                answer |= {"role": "assistant", "tool_calls": [*answer.get("tool_calls", ()), _call(item, where)]}
            case "function_call_output":
                call_id = given(item.call_id, f"{where}.call_id")
                yield where, {"role": "tool", "tool_call_id": call_id, "content": _content(item.output, f"{where}.output")}
            case "message" if is_answer:
                answer |= {"role": "assistant", "content": _content(item.content, f"{where}.content")}
            case "message":
                role, content = given(item.role, f"{where}.role"), _content(item.content, f"{where}.content")
                yield where, {"role": role, "content": content}
            case _:
                raise unsupported(f"{where}: an item of type {item.type[:50]!r} is not supported", where)
    if _says(answer):
        yield begun, answer


def _says(answer: dict[str, Any]) -> bool:
    """Whether a message holds more than thoughts."""
    return "content" in answer or "tool_calls" in answer


def _content(content: str | list[Part] | None, where: str) -> str | list[dict[str, Any]]:
    """A content as chats have it; what is no text there is refused there."""
    if content is None:
        raise InvalidRequest(f"{where} has no content", where)
    if isinstance(content, str):
        return content
    return [{"type": part.type, "text": part.text} for part in content]


def _texts(content: str | list[Part] | None) -> str:
    return content or "" if not isinstance(content, list) else "".join(part.text or "" for part in content)


def _call(item: InputItem, where: str) -> dict[str, Any]:
    function = {"name": given(item.name, f"{where}.name"), "arguments": given(item.arguments, f"{where}.arguments")}
    return {"id": given(item.call_id, f"{where}.call_id"), "type": "function", "function": function}


def _function(tool: FunctionTool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "description": tool.description, "strict": tool.strict}
    if bytes(tool.parameters):
        function["parameters"] = tool.parameters
    return {key: value for key, value in function.items() if value is not None}


def _choice(choice: str | ToolChoice) -> str | dict[str, Any]:
    if isinstance(choice, str):
        return choice
    if choice.type == "function":
        return {"type": "function", "function": {"name": choice.name}}
    named: Sequence[dict[str, Any]] = [{"type": tool.type, "function": {"name": tool.name}} for tool in choice.tools]
    return {"type": "allowed_tools", "allowed_tools": {"mode": choice.mode or "auto", "tools": named}}


def _format(format: TextFormat) -> dict[str, Any]:
    if format.type != "json_schema":
        return {"type": format.type}
    schema: dict[str, Any] = {"name": format.name, "description": format.description, "strict": format.strict}
    if bytes(format.schema):
        schema["schema"] = format.schema
    return {"type": "json_schema", "json_schema": {key: value for key, value in schema.items() if value is not None}}


def as_given(value: Any) -> Any:
    """A part of the body as it came, without what was not given."""
    if not isinstance(value, msgspec.Struct):
        return value
    return {key: part for key, part in msgspec.structs.asdict(value).items() if part is not None and part not in (_ABSENT, [])}
