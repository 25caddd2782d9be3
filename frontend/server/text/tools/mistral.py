"""[TOOL_CALLS][{"name": …, "arguments": {…}}, …], and since Mistral Small 3.1 [TOOL_CALLS]name[ARGS]{…}."""

import re

from frontend.server.text.tools.json_calls import JsonCalls, Nesting
from frontend.server.text.tools.parser import MOST_SPACE, NAME

TOOL_CALLS, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_NAMED = re.compile(rf"\s*({NAME.pattern})\s*(?:\[CALL_ID\]\s*[a-zA-Z0-9_-]{{1,64}}\s*)?(?:\[ARGS\])?\s*")
_MAY_BE_NAMED = re.compile(r"[\w.\-\[\]\s]{0,400}", re.ASCII)  # without the space before it
_BETWEEN = re.compile(r"\s*(\]|,\s*)?")


class MistralParser(JsonCalls):
    """See ToolParser."""

    marks = (TOOL_CALLS,)

    _in_list = False
    _by_name = False

    def _call(self, final: bool) -> bool:
        text = self._text
        behind = text[len(TOOL_CALLS) :].lstrip()
        if len(text) - len(behind) > len(TOOL_CALLS) + MOST_SPACE:
            return self._no_call(len(TOOL_CALLS))
        if not behind:
            return self._waits(final, len(TOOL_CALLS))
        if behind[0] in "[{":
            self._by_name, self._in_list = False, behind[0] == "["
            self._lead = len(text) - len(behind) + self._in_list
            self._step = self._head
            return True
        name, found, _ = behind.partition("{")
        may_be = _MAY_BE_NAMED.fullmatch(name) is not None
        if may_be and not found:
            return self._waits(final, len(TOOL_CALLS))
        match = _NAMED.fullmatch(name) if may_be else None
        if match is None:
            return self._no_call(len(TOOL_CALLS))
        self._begin_call(match[1])
        self._text = behind[len(name) :]
        self._nesting, self._by_name, self._in_list = Nesting(), True, False
        self._step = self._arguments
        return True

    def _enter_tail(self) -> bool:
        if not self._by_name:
            return super()._enter_tail()
        self._end_call()  # its arguments are all of it
        return True

    def _begin(self, final: bool) -> bool:
        if self._in_list and (match := _BETWEEN.match(self._text)) is not None and match.end() <= MOST_SPACE:
            if match[1] == "]":
                self._text = self._text[match.end() :]
            elif match.end() == len(self._text) and not final:
                return False
            elif match[1] and self._text.startswith("{", match.end()):
                self._lead = match.end()
                self._step = self._head
                return True
        self._in_list = False
        return super()._begin(final)
