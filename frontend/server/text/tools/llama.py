"""{"name": …, "parameters": {…}}, with <|python_tag|> before it or without: Llama 3.1 to 3.3."""

import re

from frontend.server.text.tools.json_calls import JsonCalls
from frontend.server.text.tools.parser import MOST_SPACE

PYTHON_TAG = "<|python_tag|>"
_BETWEEN = re.compile(r"\s*(?:[;,]\s*)?")


class LlamaParser(JsonCalls):
    """See ToolParser. Without the mark, calls come before all other text, and call what the model was offered."""

    marks = (PYTHON_TAG,)

    def _begin(self, final: bool) -> bool:
        match = _BETWEEN.match(self._text)
        size = match.end() if self.num_calls and match is not None else len(self._text) - len(self._text.lstrip())
        if size <= MOST_SPACE:
            if size == len(self._text) and not final:
                return False
            if self._text.startswith("{", size):
                self._lead, self._any_name = size, False
                self._step = self._head
                return True
        return super()._begin(final)

    def _call(self, final: bool) -> bool:
        self._any_name = True
        return super()._call(final)
