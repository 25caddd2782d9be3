"""What one request lets the model call."""

from collections.abc import Sequence

import msgspec

from frontend.wire import Tool


class Calling(msgspec.Struct, frozen=True, kw_only=True):
    """The tools of a request. A request that has none, or wants none called, has no Calling at all."""

    tools: Sequence[Tool]  # that the model is told of
    names: frozenset[str] | None = None  # of those that it may call; None: any
    is_required: bool = False  # it has to call
    is_named: bool = False  # a certain one
    parallel: bool = True  # it may call several at once

    @property
    def callable_tools(self) -> list[Tool]:
        """The tools that may be called."""
        return [tool for tool in self.tools if self.names is None or tool.name in self.names]
