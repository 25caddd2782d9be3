"""Tools in the bodies of requests: what they are called there, and what the engine makes of them."""

from collections.abc import Sequence
from typing import Any

import msgspec

from frontend.errors import InvalidRequest
from frontend.server.text.tools.calling import Calling
from frontend.tools import check_tools
from frontend.wire import ChatTurn, Tool, ToolCall


class FunctionDefinition(msgspec.Struct, frozen=True):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(msgspec.Struct, frozen=True):
    """A tool. The only type is "function"."""

    type: str = "function"
    function: FunctionDefinition | None = None


class FunctionName(msgspec.Struct, frozen=True):
    """A function, by its name."""

    name: str


class NamedTool(msgspec.Struct, frozen=True):
    """A tool, by its name."""

    type: str = "function"
    function: FunctionName | None = None


class AllowedTools(msgspec.Struct, frozen=True):
    """A choice among some of the tools."""

    tools: list[NamedTool]
    mode: str = "auto"


class ToolChoice(msgspec.Struct, frozen=True):
    """The tool that has to be called, or those that may be."""

    type: str = "function"
    function: FunctionName | None = None
    allowed_tools: AllowedTools | None = None


class FunctionInMessage(msgspec.Struct, frozen=True):
    """What an answer called, and with what: JSON in a text, or as it is."""

    name: str
    arguments: str | dict[str, Any] | None = None


class CallInMessage(msgspec.Struct, frozen=True):
    """A call in an answer of the past."""

    function: FunctionInMessage
    id: str | None = None
    type: str = "function"


def calls_of(calls: Sequence[CallInMessage]) -> tuple[ToolCall, ...]:
    """The calls of a message."""
    return tuple(
        ToolCall(f"call_{index}" if call.id is None else call.id, call.function.name, _arguments(call.function))
        for index, call in enumerate(calls)
    )


def as_tool(turn: ChatTurn, called: FunctionInMessage | None) -> ChatTurn:
    """A message of the time before there were tools, with a call or the result of one, as one of today."""
    if called is not None:
        return msgspec.structs.replace(turn, tool_calls=(ToolCall(f"call_{called.name}", called.name, _arguments(called)),))
    return msgspec.structs.replace(turn, role="tool", tool_call_id=f"call_{turn.name}")


def _arguments(called: FunctionInMessage) -> str:
    if called.arguments is None:
        return "{}"
    return called.arguments if isinstance(called.arguments, str) else msgspec.json.encode(called.arguments).decode()


def tools_of(tools: Sequence[ToolDefinition] | None, functions: Sequence[FunctionDefinition] | None = None) -> list[Tool]:
    """The tools of a request, checked. Raises InvalidRequest naming the one at fault."""
    field = "tools" if tools else "functions"
    found = []
    for index, tool in enumerate(tools or ()):
        if tool.type != "function" or tool.function is None:
            message = f"tools[{index}]: only tools of type 'function' are supported, which have a function"
            raise InvalidRequest(message, f"tools[{index}]")
        found.append(_tool(tool.function))
    found += [_tool(function) for function in functions or ()] if not tools else []
    check_tools(found, field)
    return found


def _tool(function: FunctionDefinition) -> Tool:
    return Tool(function.name, function.description, function.parameters or {}, function.strict is True)


def calling_of(
    tools: Sequence[Tool],
    choice: str | ToolChoice | None,
    legacy: str | FunctionName | None = None,
    parallel: bool | None = None,
) -> Calling | None:
    """What a request lets the model call. `legacy`: function_call, whose calls are single. Raises InvalidRequest."""
    field = "tool_choice"
    if choice is None and legacy is not None:
        field = "function_call"
        choice = legacy if isinstance(legacy, str) else ToolChoice(function=legacy)
    if choice in (None, "auto", "none"):
        return Calling(tools=tools, parallel=parallel is not False) if tools and choice != "none" else None
    if not tools:
        raise InvalidRequest(f"{field} needs tools", field)
    if choice == "required":
        return Calling(tools=tools, is_required=True, parallel=parallel is not False)
    if isinstance(choice, str):
        raise InvalidRequest(f"{field} is auto, none, required or names a function, not {choice[:50]!r}", field)
    if choice.allowed_tools is not None:
        allowed = choice.allowed_tools
        if allowed.mode not in ("auto", "required"):
            raise InvalidRequest("tool_choice.allowed_tools.mode is auto or required", field)
        names = frozenset(_known("" if tool.function is None else tool.function.name, tools, field) for tool in allowed.tools)
        if not names:
            return None
        return Calling(tools=tools, names=names, is_required=allowed.mode == "required", parallel=parallel is not False)
    if choice is None or choice.function is None:
        raise InvalidRequest(f"{field} names no function", field)
    name = _known(choice.function.name, tools, field)
    return Calling(tools=tools, names=frozenset([name]), is_required=True, is_named=True, parallel=False)


def _known(name: str, tools: Sequence[Tool], field: str) -> str:
    if not any(tool.name == name for tool in tools):
        raise InvalidRequest(f"{field} names {name[:64]!r}, which is none of the tools", field)
    return name
