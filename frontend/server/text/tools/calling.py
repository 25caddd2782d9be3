"""What one request lets the model call."""

from collections.abc import Sequence

import msgspec

from frontend.errors import InvalidRequest
from frontend.tools import check_tools
from frontend.wire import Conversation, Tool


class Calling(msgspec.Struct, frozen=True, kw_only=True):
    """The tools of a request. A request that has none, or wants none called, has no Calling at all."""

    tools: Sequence[Tool]  # that the model is told of
    names: frozenset[str] | None = None  # of those that it may call; None: any
    is_required: bool = False  # it has to call
    is_named: bool = False  # a certain one
    parallel: bool = True  # it may call several at once

    @classmethod
    def of(cls, conversation: Conversation) -> "Calling | None":
        """What a conversation of the Python client lets the model call. Raises InvalidRequest."""
        tools, choice, parallel = conversation.tools, conversation.tool_choice, conversation.parallel_tool_calls
        check_tools(tools)
        if choice in ("auto", "none"):
            return cls(tools=tools, parallel=parallel) if tools and choice == "auto" else None
        if not tools:
            raise InvalidRequest("tool_choice needs tools", "tool_choice")
        if choice == "required":
            return cls(tools=tools, is_required=True, parallel=parallel)
        if not any(tool.name == choice for tool in tools):
            raise InvalidRequest(f"tool_choice is auto, none, required or names a tool, not {choice[:64]!r}", "tool_choice")
        return cls(tools=tools, names=frozenset({choice}), is_required=True, is_named=True, parallel=False)

    @property
    def callable_tools(self) -> list[Tool]:
        """The tools that may be called."""
        return [tool for tool in self.tools if self.names is None or tool.name in self.names]
