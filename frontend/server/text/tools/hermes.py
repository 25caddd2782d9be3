"""<tool_call>{"name": …, "arguments": {…}}</tool_call>: Hermes, Qwen 2.5 and 3, and models without a format of their own."""

from frontend.server.text.tools.json_calls import JsonCalls
from frontend.server.text.tools.parser import MOST_SPACE

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class HermesParser(JsonCalls):
    """See ToolParser."""

    marks = (OPEN,)

    def _begin(self, final: bool) -> bool:
        if self.num_calls:
            behind = self._text.lstrip()
            if len(self._text) - len(behind) <= MOST_SPACE:
                if behind.startswith(CLOSE):
                    self._text = behind[len(CLOSE) :]
                elif CLOSE.startswith(behind) and not final:
                    return False
        return super()._begin(final)
