"""Requests that were submitted before, over a connection that ended with the frontend: what their client lacks."""

from collections.abc import Iterator

from frontend.errors import InvalidRequest
from frontend.wire import ResumedOutput, Submit, ToolCall

NOTHING = ResumedOutput(b"", 0)


def outputs(submit: Submit) -> Iterator[tuple[int, ResumedOutput]]:
    """The outputs that have not ended, by index, with what the client has of them. Raises InvalidRequest where they are not `n`."""
    count = submit.params.n
    came = (NOTHING,) * count if submit.resumed is None else submit.resumed.outputs
    if len(came) != count:
        raise InvalidRequest(f"{len(came)} outputs are resumed of a request for {count}", "resumed")
    return ((index, output) for index, output in enumerate(came) if output is not None)


class Remainder:
    """Leaves out the beginning of an output, which its client has: an output is made anew from its tokens, the same every time."""

    def __init__(self, came: ResumedOutput) -> None:
        self._tokens = len(came.token_ids_i32) // 4
        self._text = came.text
        self._reasoning = came.reasoning
        self._calls = came.tool_calls

    def tokens(self, token_ids: list[int]) -> list[int]:
        """Those of the next tokens that did not come before."""
        left, self._tokens = token_ids[self._tokens :], max(0, self._tokens - len(token_ids))
        return left

    def of(self, text: str, reasoning: str, calls: tuple[ToolCall, ...]) -> tuple[str, str, tuple[ToolCall, ...]]:
        """That part of the next piece that did not come before."""
        left = text[self._text :], reasoning[self._reasoning :], calls[self._calls :]
        self._text = max(0, self._text - len(text))
        self._reasoning = max(0, self._reasoning - len(reasoning))
        self._calls = max(0, self._calls - len(calls))
        return left
