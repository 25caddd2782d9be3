"""Python's literals as JSON."""

import json
import re

_LITERALS = {"true": "true", "false": "false", "null": "null", "None": "null", "True": "true", "False": "false"}
_BRACKETS = {"(": "[", ")": "]"}
_TOKEN = re.compile(
    r"""(?P<text>'''(?:[^\\]|\\.)*?'''|\"\"\"(?:[^\\]|\\.)*?\"\"\"|'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
    r"|(?P<word>[^\W\d]\w*)|(?P<other>[^'\"\w]+|\w+)",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:[0-7]{1,3}|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
_LETTERS = {
    "\n": "", "\\": "\\", "'": "'", '"': '"', "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "/": "/"
}  # fmt: skip
_SURROGATE = re.compile(r"[\ud800-\udfff]")
ESCAPE_SIZES = {"x": 4, "u": 6, "U": 10} | dict.fromkeys("01234567", 4)  # characters, at most; others have two


def inside_quotes(text: str) -> str:
    """A text as JSON writes it between quotes. What UTF-8 cannot hold stays an escape."""
    written = json.dumps(text, ensure_ascii=False)[1:-1]
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", written)


def unescaped(text: str) -> str:
    """What is between the quotes of a literal, with its escapes read; unknown ones stay, as in Python."""
    return _ESCAPE.sub(_meant, text) if "\\" in text else text


def to_json(source: str) -> str:
    """A literal as JSON; what is none becomes a text that holds the source."""
    pieces = []
    for match in _TOKEN.finditer(source):
        if (text := match["text"]) is not None:
            size = 3 if len(text) >= 6 and text[:3] in ("'''", '"""') else 1
            pieces.append(f'"{inside_quotes(unescaped(text[size:-size]))}"')
        elif (word := match["word"]) is not None:
            pieces.append(_LITERALS.get(word, word))
        else:
            pieces.append("".join(_BRACKETS.get(letter, letter) for letter in match["other"]))
    written = "".join(pieces)
    try:
        json.loads(written, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return f'"{inside_quotes(source)}"'
    return written


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _meant(match: "re.Match[str]") -> str:
    escape = match[0]
    letter = escape[1]
    if letter in "01234567":
        return chr(int(escape[1:], 8))
    if len(escape) > 2:
        digits = escape[2:]
        number = int(digits, 16)
        return chr(number) if number <= 0x10FFFF else escape
    return _LETTERS.get(letter, escape)
