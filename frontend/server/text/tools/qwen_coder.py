"""<tool_call><function=name><parameter=key>value</parameter>…</function></tool_call>: Qwen 3 Coder and its successors."""

import json
import re

from frontend.server.text.tools.parser import NAME, ToolParser, held
from frontend.server.text.tools.python_values import inside_quotes, to_json

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_FUNCTION, _END_FUNCTION, _PARAMETER, _END_PARAMETER = "<function=", "</function>", "<parameter=", "</parameter>"
_HEAD = re.compile(rf"(?:<tool_call>\s{{0,64}})?<function=\s{{0,64}}({NAME.pattern})\s{{0,64}}>")
_MAY_BE_HEAD = re.compile(r"(?:<tool_call>\s{0,64})?(?:<function=\s{0,64}[\w.\-]{0,64}\s{0,64})?", re.ASCII)
_KEY = re.compile(r"<parameter=\s{0,64}([^<>]{1,256}?)\s{0,64}>")
_TEXTS = ("string", "str", "text", "enum")  # types that are texts, as models' own tools call them


class QwenCoderParser(ToolParser):
    """See ToolParser. Values are texts without quotes: the tool's schema says which of them are JSON."""

    marks = (OPEN, _FUNCTION)

    _num_arguments = 0
    _is_text = False
    _at_start = False  # of a value

    def _begin(self, final: bool) -> bool:
        if self.num_calls and not self._take_end(CLOSE, final):
            return False
        return super()._begin(final)

    def _call(self, final: bool) -> bool:
        match = _HEAD.match(self._text)
        if match is None:
            if _MAY_BE_HEAD.fullmatch(self._text) is not None or self._may_be_function():
                return self._waits(final, len(self._mark))
            return self._no_call(len(self._mark))
        self._begin_call(match[1])
        self._argue("{")
        self._text = self._text[match.end() :]
        self._num_arguments = 0
        self._step = self._parameter
        return True

    def _may_be_function(self) -> bool:
        text = self._text.removeprefix(OPEN).lstrip()
        return self._mark == OPEN and len(self._text) - len(text) <= len(OPEN) + 64 and _FUNCTION.startswith(text)

    def _parameter(self, final: bool) -> bool:
        """Before a parameter, or the end of them."""
        text = self._text = self._text.lstrip()
        if (match := _KEY.match(text)) is not None:
            key = match[1]
            self._argue(f'{", " if self._num_arguments else ""}"{inside_quotes(key)}": ')
            self._text = text[match.end() :]
            self._num_arguments += 1
            self._is_text = self._takes_text(key)
            if self._is_text:
                self._argue('"')
            self._at_start = True
            self._step = self._value
            return True
        if not final:
            if any(mark.startswith(text) for mark in (_PARAMETER, _END_FUNCTION)):
                return False
            if text.startswith(_PARAMETER) and len(text) < 500 and ">" not in text:
                return False
        self._text = text.removeprefix(_END_FUNCTION)  # without it, the call is over too
        self._argue("}")
        self._end_call()
        return True

    def _value(self, final: bool) -> bool:
        if self._at_start:
            if not self._text:
                return False
            self._text = self._text.removeprefix("\n")
            self._at_start = False
        text = self._text
        place = text.find(_END_PARAMETER)
        if place < 0:
            if self._is_text and not final:
                size = len(text) - held(text, ("\n" + _END_PARAMETER, _END_PARAMETER))
                self._argue(inside_quotes(text[:size]))
                self._text = text[size:]
            if not final:
                return False
            place = len(text)
        value = text[:place].removesuffix("\n")
        self._argue(f'{inside_quotes(value)}"' if self._is_text else _as_json(value))
        self._text = text[place + len(_END_PARAMETER) :]
        self._step = self._parameter
        return True

    def _takes_text(self, key: str) -> bool:
        tool = self._tools.get(self._called)
        properties = tool.parameters.get("properties") if tool is not None else None
        return takes_text(properties.get(key) if isinstance(properties, dict) else None)


def takes_text(schema: object) -> bool:
    """Whether a parameter's value is a text, not JSON."""
    if not isinstance(schema, dict):
        return True
    kind = schema.get("type")
    if kind is None:
        return not any(key in schema for key in ("anyOf", "oneOf", "$ref"))
    return kind in _TEXTS


def _as_json(value: str) -> str:
    value = value.strip()
    try:
        json.loads(value, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return to_json(value)
    return value


def _refuse(constant: str) -> None:
    raise ValueError(constant)
