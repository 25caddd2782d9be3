"""<tool_call>{"name": …, "arguments": {…}}</tool_call>: Hermes, Qwen 2.5 and 3, and models without a format of their own."""

from frontend.server.text.tools.json_calls import JsonCalls

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class HermesParser(JsonCalls):
    """See ToolParser."""

    marks = (OPEN,)

    def _begin(self, final: bool) -> bool:
        if self.num_calls and not self._take_end(CLOSE, final):
            return False
        return super()._begin(final)
