"""[f(a=1), g(b="x")], between <|python_start|> and <|python_end|> or without: Llama 3.2 and 4, and others."""

import re

from frontend.server.text.tools.parser import MOST_SPACE, NAME, ToolParser
from frontend.server.text.tools.python_values import ESCAPE_SIZES, inside_quotes, to_json, unescaped

START, END = "<|python_start|>", "<|python_end|>"
_OPEN = re.compile(r"\s{0,64}\[")
_CALL = re.compile(rf"\s{{0,64}}({NAME.pattern})\s{{0,64}}\(")
_MAY_BE_CALL = re.compile(r"\s{0,64}[\w.\-]{0,64}\s{0,64}", re.ASCII)
_KEY = re.compile(r"([^\W\d]\w{0,255})\s{0,64}=(?!=)")
_MAY_BE_KEY = re.compile(r"[^\W\d]\w{0,255}\s{0,64}=?")
_BETWEEN = re.compile(r"\s*([,\]])?")
_STOP = re.compile(r"""\\.|["'()\[\]{},]""", re.DOTALL)


class PythonicParser(ToolParser):
    """See ToolParser. Without the mark, calls come before all other text, and call what the model was offered.

    Arguments become JSON while they come: texts letter by letter, other values one by one. What is no literal becomes a text.
    """

    marks = (START,)

    _lead = 0  # characters before a name
    _in_list = False
    _num_arguments = 0
    _quote = ""  # of the text that is open
    _place, _depth, _inner = 0, 0, ""  # of the value that is open: what was looked at, brackets, and a quote

    def _begin(self, final: bool) -> bool:
        if self._in_list:
            return self._next(final)
        blank = len(self._text) - len(self._text.lstrip())
        if not self.num_calls and blank <= MOST_SPACE:
            if blank == len(self._text) and not final:
                return False
            if self._text.startswith("[", blank):
                self._mark = ""
                self._step = self._call
                return True
        return super()._begin(final)

    def _next(self, final: bool) -> bool:
        """Behind a call of the list."""
        match = _BETWEEN.match(self._text)
        if match is not None and match.end() <= MOST_SPACE:
            if match[1] == "]":
                self._text = self._text[match.end() :]
                self._in_list = False
                self._step = self._behind
                return True
            if match.end() == len(self._text) and not final:
                return False
            if match[1]:
                self._lead = match.end()
                self._step = self._name
                return True
        self._in_list = False
        return super()._begin(final)

    def _behind(self, final: bool) -> bool:
        """Behind the list."""
        return self._take_end(END, final) and super()._begin(final)

    def _call(self, final: bool) -> bool:
        start = len(self._mark)
        match = _OPEN.match(self._text, start)
        if match is None:
            blank = not self._text[start:].strip() and len(self._text) <= start + 64
            return self._waits(final, start) if blank else self._no_call(start)
        self._lead = match.end()
        self._step = self._name
        return True

    def _name(self, final: bool) -> bool:
        match = _CALL.match(self._text, self._lead)
        if match is None:
            if _MAY_BE_CALL.fullmatch(self._text, self._lead) is not None:
                return self._waits(final, self._lead)
            return self._no_call(self._lead)
        if not self._mark and match[1] not in self._tools:
            return self._no_call(self._lead)
        self._begin_call(match[1])
        self._argue("{")
        self._text = self._text[match.end() :]
        self._in_list, self._num_arguments = True, 0
        self._step = self._argument
        return True

    def _argument(self, final: bool) -> bool:
        """Before an argument, or the end of them."""
        text = self._text = self._text.lstrip()
        if not text:
            return False
        if text[0] == ")":
            self._text = text[1:]
            self._argue("}")
            self._end_call()
            return True
        match = _KEY.match(text)
        if not final and len(text) < 400 and (match is None or match.end() == len(text)) and _MAY_BE_KEY.fullmatch(text):
            return False  # the name goes on, or "=" becomes "=="
        if match is None:
            name = self._name_of_positional()
        else:
            name, self._text = match[1], text[match.end() :]
        self._argue(f'{", " if self._num_arguments else ""}"{inside_quotes(name)}": ')
        self._num_arguments += 1
        self._step = self._value
        return True

    def _name_of_positional(self) -> str:
        """An argument that has no name has that of the parameter in its place."""
        tool = self._tools.get(self._called)
        properties = tool.parameters.get("properties") if tool is not None else None
        names = list(properties) if isinstance(properties, dict) else []
        return names[self._num_arguments] if self._num_arguments < len(names) else f"argument_{self._num_arguments}"

    def _value(self, final: bool) -> bool:
        text = self._text = self._text.lstrip()
        if not text:
            return False
        if text[0] not in "\"'":
            self._place, self._depth, self._inner = 0, 0, ""
            self._step = self._other
            return True
        self._argue('"')
        self._step = self._open_quote
        return True

    def _open_quote(self, final: bool) -> bool:
        """Before a text, or a part of one: "a" "b" are one."""
        quote = self._text[0]
        if len(self._text) < 3 and self._text == quote * len(self._text) and not final:
            return False
        self._quote = quote * 3 if self._text.startswith(quote * 3) else quote
        self._text = self._text[len(self._quote) :]
        self._step = self._letters
        return True

    def _letters(self, final: bool) -> bool:
        """Within a text."""
        text, quote = self._text, self._quote
        place = 0
        pieces = []
        while True:
            stops = [found for found in (text.find("\\", place), text.find(quote[0], place)) if found >= 0]
            stop = min(stops, default=len(text))
            pieces.append(text[place:stop])
            place = stop
            if stop == len(text):
                break
            if text[stop] == "\\":
                size = ESCAPE_SIZES.get(text[stop + 1 : stop + 2], 2)
                if len(text) - stop < size and not final:
                    break
                end = _escape_end(text, stop, size)
                pieces.append(unescaped(text[stop:end]))
                place = end
            elif text.startswith(quote, stop):
                self._argue(inside_quotes("".join(pieces)))
                self._text = text[stop + len(quote) :]
                self._step = self._behind_text
                return True
            elif len(text) - stop < len(quote) and not final:
                break
            else:
                pieces.append(text[stop])
                place = stop + 1
        self._argue(inside_quotes("".join(pieces)))
        self._text = text[place:]
        return False

    def _behind_text(self, final: bool) -> bool:
        text = self._text.lstrip()
        if not text:
            if final:
                self._argue('"')
                self._text = ""
            return False
        if text[0] in ",)":
            self._text = text
            self._argue('"')
            self._step = self._separator
        elif text[0] in "\"'":
            self._text = text
            self._step = self._open_quote
        else:
            self._place, self._depth, self._inner = 0, 0, ""
            self._step = self._rest_of_text
        return True

    def _separator(self, final: bool) -> bool:
        self._text = self._text.removeprefix(",")
        self._step = self._argument
        return True

    def _other(self, final: bool) -> bool:
        """Within a value that is not a text."""
        end = self._end_of_value(final)
        if end is None:
            return False
        self._argue(to_json(self._text[:end].strip()))
        self._text = self._text[end:]
        self._step = self._separator
        return True

    def _rest_of_text(self, final: bool) -> bool:
        """Behind a text with which an expression begins: its source goes on in the text."""
        end = self._end_of_value(final)
        if end is None:
            return False
        self._argue(inside_quotes(self._text[:end]) + '"')
        self._text = self._text[end:]
        self._step = self._separator
        return True

    def _end_of_value(self, final: bool) -> int | None:
        """Where a comma or parenthesis ends the value; goes on where it stopped."""
        text = self._text
        for match in _STOP.finditer(text, self._place):
            letter = match[0]
            if self._inner:
                self._inner = "" if letter == self._inner else self._inner
            elif letter in "\"'":
                self._inner = letter
            elif letter in "([{":
                self._depth += 1
            elif letter[0] != "\\":
                if not self._depth and letter in ",)":
                    return match.start()
                if letter != ",":
                    self._depth = max(0, self._depth - 1)
            self._place = match.end()
        self._place = max(self._place, len(text) - text.endswith("\\"))
        return len(text) if final else None


def _escape_end(text: str, start: int, size: int) -> int:
    """Where the escape ends that begins there: at most `size` characters long, the digits of octal ones may be fewer."""
    if size == 4 and text[start + 1] in "01234567":
        end = start + 2
        while end < min(len(text), start + 4) and text[end] in "01234567":
            end += 1
        return end
    return start + size
