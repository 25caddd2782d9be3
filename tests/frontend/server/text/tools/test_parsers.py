"""Calls in every format, however the text is cut; and what only looks like calls."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from frontend.server.text.tools import json_calls
from frontend.server.text.tools.events import Arguments, CallBegun, CallEnded, Content
from frontend.server.text.tools.formats import FORMATS
from frontend.server.text.tools.json_calls import read_head
from frontend.server.text.tools.parser import held
from tests.frontend.server.text.tools.read import TOOLS, Answer, pieces_of, read

_PARIS = ("weather", '{"city": "Paris", "days": 2}')

# (format, text, content, calls)
CALLS: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    ("hermes", '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>', "", [_PARIS]),
    (
        "hermes",
        'Let me see.\n<tool_call>\n{"arguments": {"city": "Paris", "days": 2}, "name": "weather"}\n</tool_call>\n<tool_call>\n'
        '{"name": "now"}\n</tool_call>\n',
        "Let me see.\n",
        [_PARIS, ("now", "{}")],
    ),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": \\"\\\\u00e9\\"}"}', "", [("f", '{"a": "\\u00e9"}')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": null} </tool_call> Done.', " Done.", [("f", "{}")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>{"}}</tool_call>', "", [("f", '{"a": "</tool_call>{"}')]),
    ("hermes", '\n <tool_call>{"name": "f", "type": "x", "arguments": {}, "id": {"a": "}"}}</tool_call>', "", [("f", "{}")]),
    ("generic", '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>', "", [("now", "{}")]),
    ("llama3_json", '{"name": "weather", "parameters": {"city": "Paris", "days": 2}}', "", [_PARIS]),
    ("llama3_json", '\n{"type": "function", "name": "now", "parameters": {}}', "", [("now", "{}")]),
    (
        "llama3_json",
        '<|python_tag|>{"name": "weather", "parameters": {"city": "Paris", "days": 2}}; {"name": "now", "parameters": null}',
        "",
        [_PARIS, ("now", "{}")],
    ),
    ("llama3_json", 'See: <|python_tag|>{"name": "other", "arguments": {"a": []}} end', "See:  end", [("other", '{"a": []}')]),
    ("mistral", '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris", "days": 2}}]', "", [_PARIS]),
    (
        "mistral",
        'So:[TOOL_CALLS][{"name": "now", "arguments": {}} , {"name": "f", "arguments": {"a": "]"}, "id": "abcdefghi"}] and',
        "So: and",
        [("now", "{}"), ("f", '{"a": "]"}')],
    ),
    ("mistral", '[TOOL_CALLS]weather[ARGS]{"city": "Paris", "days": 2}[TOOL_CALLS]now[ARGS]{}', "", [_PARIS, ("now", "{}")]),
    ("mistral", '[TOOL_CALLS]now[CALL_ID]a1b2[ARGS]{}[TOOL_CALLS]now{"a": "{"}!', "!", [("now", "{}"), ("now", '{"a": "{"}')]),
    ("pythonic", '[weather(city="Paris", days=2)]', "", [_PARIS]),
    ("pythonic", "<|python_start|>[now(), other(x=None)]<|python_end|>", "", [("now", "{}"), ("other", '{"x": null}')]),
    (
        "pythonic",
        "[weather('Pa\\'r\\x69s', near={'x': -1.5, 'y': (1, True)}), add(a=1e3,b=[],), now()] ok",
        " ok",
        [("weather", '{"city": "Pa\'ris", "near": {"x": -1.5, "y": [1, true]}}'), ("add", '{"a": 1e3, "b": []}'), ("now", "{}")],
    ),
    (
        "pythonic",
        '[weather(city="""a "b\\\nc""" "d", days=f(1, ")"), unit="x" + y)]',
        "",
        [("weather", '{"city": "a \\"bcd", "days": "f(1, \\")\\")", "unit": "x + y"}')],
    ),
    ("pythonic", '[weather(city="\\ud83d\\ude00\\/\\q\\0")]', "", [("weather", '{"city": "\\ud83d\\ude00/\\\\q\\u0000"}')]),
    (
        "qwen3_coder",
        "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>\n"
        "</tool_call>",
        "",
        [_PARIS],
    ),
    (
        "qwen3_coder",
        "I'll <function=weather>\n<parameter=near>\n{'x': 1}\n</parameter>\n<parameter=city>\n\na\n\"b\"\n\n</parameter>\n"
        "</function><tool_call><function=now></function> </tool_call>",
        "I'll ",
        [("weather", '{"near": {"x": 1}, "city": "\\na\\n\\"b\\"\\n"}'), ("now", "{}")],
    ),
]

# (format, text that is content to its last letter)
TEXTS = [
    ("hermes", "a < b <tool <tool_call"),
    ("hermes", "<tool_call>nothing</tool_call>"),
    ("hermes", '<tool_call>{"nam": 1, "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "a b", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": 7}'),
    ("hermes", '<tool_call>{"name": "f"'),
    ("hermes", "   "),
    ("llama3_json", '{"name": "unknown", "parameters": {}}'),
    ("llama3_json", '{"answer": {"name": "now"}}'),
    ("llama3_json", 'It is {"name": "now", "parameters": {}}'),
    ("llama3_json", "<|python_tag|>print(1)"),
    ("mistral", "[TOOL_CALLS] no calls"),
    ("mistral", "[TOOL_CALLS][1, 2]"),
    ("mistral", "[TOOL_CALLS]now[ARGS]"),
    ("mistral", "[TOOL_CALL"),
    ("pythonic", "[1, 2]"),
    ("pythonic", "[unknown(a=1)]"),
    ("pythonic", "a [now()]"),
    ("pythonic", "[now"),
    ("qwen3_coder", "<tool_call>\n<function>now</function>"),
    ("qwen3_coder", "<function=a b>"),
]


@pytest.mark.parametrize(("name", "text", "content", "calls"), CALLS)
def test_calls_are_found(name: str, text: str, content: str, calls: list[tuple[str, str]]) -> None:
    assert read(FORMATS[name].parser, [text]) == Answer(content, calls)
    assert read(FORMATS[name].parser, [*text, ""]) == Answer(content, calls)
    for _, arguments in calls:
        assert isinstance(json.loads(arguments), dict)


@pytest.mark.parametrize(("name", "text"), TEXTS)
def test_what_is_no_call_is_content(name: str, text: str) -> None:
    assert read(FORMATS[name].parser, [text]) == Answer(text, [])
    assert read(FORMATS[name].parser, [*text, ""]) == Answer(text, [])


# What is said of text and its marks holds for these: `test_harmony` has the other.
_WITHOUT_CHANNELS = [name for name in FORMATS if name != "openai"]
_FRAGMENTS = [
    *sorted({mark for found in FORMATS.values() for mark in found.marks}),
    *(
        '{"name": "now"',
        ', "arguments": ',
        ', "parameters": ',
        '{"a": "',
        '"}',
        "}",
        "]",
        "[",
        "{",
        ", ",
        ": ",
        '"',
        "\\",
        "'",
        "; ",
    ),
    *("now(", "add(a=", "b=", "=", ")", "<function=", "weather>", "<parameter=", "city>", "days>", "</parameter>", "</function>"),
    *("now", "null", "12", " ", "\n", "\n\n", "<", "\\u", "\\x4", "é", "\U0001f600", '"""', "#", " " * 70),
]
_texts = st.lists(st.one_of(st.sampled_from(_FRAGMENTS), st.text(max_size=3)), max_size=20).map("".join)


@pytest.mark.parametrize("name", _WITHOUT_CHANNELS)
@settings(max_examples=150)
@given(text=_texts, cuts=st.lists(st.integers(0, 1000), max_size=8))
@example(text=" " * 300 + "[now()]", cuts=[200, 256, 257])
def test_any_cut_gives_what_the_whole_gives(name: str, text: str, cuts: list[int]) -> None:
    parser = FORMATS[name].parser
    whole = read(parser, [text])
    assert read(parser, pieces_of(text, cuts)) == whole
    assert read(parser, [*text, ""]) == whole
    if not whole.calls:
        assert whole.content == text


@pytest.mark.parametrize(("name", "text", "content", "calls"), CALLS)
@settings(max_examples=20)
@given(data=st.data())
def test_calls_with_anything_changed_never_fail(name: str, text: str, content: str, calls: Any, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(text)))
    size = data.draw(st.integers(0, 5))
    broken = text[:place] + data.draw(st.sampled_from(["", *_FRAGMENTS])) + text[place + size :]
    whole = read(FORMATS[name].parser, [broken])
    assert read(FORMATS[name].parser, [*broken, ""]) == whole


def test_arguments_come_while_they_are_written() -> None:
    parser = FORMATS["hermes"].parser(TOOLS)
    assert parser.feed("Let me see. <tool") == [Content("Let me see. ")]
    assert parser.feed('_call>{"name": "weather", "argum') == []
    assert parser.feed('ents": {"city": "Pa') == [CallBegun(0, "weather"), Arguments(0, '{"city": "Pa')]
    assert parser.feed('ris"') == [Arguments(0, 'ris"')]
    assert parser.feed("}}</") == [Arguments(0, "}"), CallEnded(0)]
    assert parser.feed("tool_call>") == []
    assert parser.feed("", final=True) == []

    parser = FORMATS["pythonic"].parser(TOOLS)
    assert parser.feed("[weather(city='Pa") == [CallBegun(0, "weather"), Arguments(0, '{"city": "Pa')]
    assert parser.feed("ris', da") == [Arguments(0, 'ris"')]
    assert parser.feed("ys=12") == [Arguments(0, ', "days": ')]
    assert parser.feed(")") == [Arguments(0, "12}"), CallEnded(0)]

    parser = FORMATS["qwen3_coder"].parser(TOOLS)
    parser.feed("<tool_call>\n<function=weather>\n<parameter=city>\n")
    assert parser.feed("Paris\n</par") == [Arguments(0, "Paris")]
    assert parser.feed("ty") == [Arguments(0, "\\n</party")]


def test_a_call_that_is_cut_off_is_shown_as_far_as_it_came() -> None:
    assert read(FORMATS["hermes"].parser, ['<tool_call>{"name": "now", "arguments": {"a": "x']) == Answer("", [("now", '{"a": "x')])
    assert read(FORMATS["pythonic"].parser, ['[now(a="x']) == Answer("", [("now", '{"a": "x')])


def test_broken_arguments_are_shown_as_they_came() -> None:
    text = '<tool_call>{"name": "now", "arguments": {"a": oops </tool_call> <tool_call>{"name": "add"}</tool_call>'
    assert read(FORMATS["hermes"].parser, [text]) == Answer("", [("now", '{"a": oops '), ("add", "{}")])


def test_what_is_held_back_is_bounded() -> None:
    for name in _WITHOUT_CHANNELS:
        found = FORMATS[name]
        parser = found.parser(TOOLS)
        start = found.marks[0] if name != "pythonic" else "["
        for piece in [start, *['{"arguments": ["'] * (name != "pythonic"), *["a" * 1000] * 1000]:
            parser.feed(piece)
        assert len(parser._text) < 20_000


def test_how_much_may_begin_a_mark() -> None:
    assert [held(text, ("<a>", "<bc>")) for text in ("", "x", "x<", "<a", "<b", "<bc", "<c")] == [0, 0, 1, 2, 2, 3, 0]


@pytest.mark.parametrize(("name", "text", "content", "calls"), CALLS)
@pytest.mark.parametrize("space", [" ", " " * 65, " " * 257])
def test_space_anywhere_is_read_the_same_in_pieces(name: str, text: str, content: str, calls: Any, space: str) -> None:
    parser = FORMATS[name].parser
    for place in range(len(text) + 1):
        spaced = text[:place] + space + text[place:]
        whole = read(parser, [spaced])
        middle = place + len(space)
        assert read(parser, [spaced[:place], space, spaced[middle:]]) == whole
        assert read(parser, [spaced[: place + 1], spaced[place + 1 :]]) == whole


def test_a_head_that_does_not_end_is_not_read_again_with_every_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def counting(text: str, start: int) -> Any:
        sizes.append(len(text))
        return read_head(text, start)

    monkeypatch.setattr(json_calls, "read_head", counting)
    parser = FORMATS["hermes"].parser(TOOLS)
    for letter in "<tool_call>" + '{"name":' * 2_000:
        parser.feed(letter)
    assert sum(sizes) < 16 * 16_000


def test_a_value_that_does_not_end_is_not_read_again_with_every_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def counting(text: str, place: int) -> int | None:
        nonlocal looks
        looks += 1
        return json_calls._string_end(text, place)

    monkeypatch.setattr(json_calls, "_value_end", counting)
    parser = FORMATS["hermes"].parser(TOOLS)
    parser.feed('<tool_call>{"name": "now", "arguments": "')
    looks = 0
    for _ in range(20_000):
        parser.feed("a")
    assert looks < 400
