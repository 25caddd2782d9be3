"""gpt-oss's channels: thoughts, text and calls told apart, however the text is cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.server.text.tools.events import Arguments, CallBegun, CallEnded, Content, Event, Reasoning, put_together
from frontend.server.text.tools.harmony import MARKS, HarmonyParser, leaves_open
from tests.frontend.server.text.tools.read import TOOLS, pieces_of
from tests.frontend.server.text.tools.read import put_together as check_order

_NEXT = "<|end|><|start|>assistant"
_WEATHER = '{"city": "Paris", "days": 2}'

# (text, thoughts, content, calls)
ANSWERS: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    (f"<|channel|>analysis<|message|>Hm.{_NEXT}<|channel|>final<|message|>Yes.", "Hm.", "Yes.", []),
    ("<|channel|>final<|message|>Yes.<|return|>", "", "Yes.", []),
    ("<|channel|>analysis<|message|>Cut of", "Cut of", "", []),
    (
        f"<|channel|>analysis<|message|>Look.{_NEXT}<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
        f"{_WEATHER}<|call|>",
        "Look.",
        "",
        [("weather", _WEATHER)],
    ),
    (
        f"<|channel|>commentary<|message|>I look.{_NEXT} to=functions.weather<|channel|>commentary json<|message|>{_WEATHER}",
        "",
        "I look.",
        [("weather", _WEATHER)],
    ),
    (" to=functions.now<|channel|>commentary<|message|>{}<|call|>", "", "", [("now", "{}")]),
    ("<|channel|>commentary to=functions.now <|constrain|>json<|message|><|call|>", "", "", [("now", "{}")]),
    ("<|channel|>analysis to=functions.now code<|message|> {}", "", "", [("now", " {}")]),
    ("<|channel|>commentary to=now<|message|>{}", "", "", [("now", "{}")]),
    (f"<|channel|>analysis to=python code<|message|>print(1){_NEXT}<|channel|>final<|message|>1", "print(1)", "1", []),
    (
        "<|channel|>commentary to=functions.now<|message|>{}<|call|><|start|>assistant<|channel|>commentary to=functions.add "
        '<|constrain|>json<|message|>{"a": 1}',
        "",
        "",
        [("now", "{}"), ("add", '{"a": 1}')],
    ),
    (f"<|channel|>analysis<|message|>A{_NEXT}<|channel|>analysis<|message|>B{_NEXT}<|message|>C", "A\nB", "C", []),
    (f"<|channel|>commentary<|message|>I look.{_NEXT}<|channel|>final<|message|>It is 3.", "", "I look.\n\nIt is 3.", []),
    (f"<|channel|>analysis<|message|>{_NEXT}<|channel|>analysis<|message|>B<|end|>", "B", "", []),
    ("<|channel|>analysis<|message|>A<|start|>assistant<|channel|>final<|message|>B", "A", "B", []),
    ("<|channel|>analysis<|message|>A<|channel|>final<|message|>B", "A", "B", []),
    ("<|channel|>final<|message|>a < b <|x|> c", "", "a < b <|x|> c", []),
    ("<|channel|>other<|message|>B", "", "B", []),
    # What keeps to no format is content.
    ("Just text.", "", "Just text.", []),
    ("to be or not", "", "to be or not", []),
    (" ", "", "", []),
    ("<|channel|>two words here<|message|>B", "", "two words hereB", []),
    ("<|channel|>final<|message|>A<|end|> and more", "", "A\n\n and more", []),
    ("<|end|><|return|>A<|message|>B", "", "AB", []),
    # Heads that are cut off are no text.
    ("<|channel|>anal", "", "", []),
    (f"<|channel|>analysis<|message|>A{_NEXT}<|channel|>commentary to=func", "A", "", []),
]


def read(parser: HarmonyParser, pieces: list[str]) -> list[Event]:
    return [event for piece in pieces[:-1] for event in parser.feed(piece)] + parser.feed(pieces[-1], final=True)


@pytest.mark.parametrize(("text", "thoughts", "content", "calls"), ANSWERS)
def test_the_parts_are_told_apart(text: str, thoughts: str, content: str, calls: list[tuple[str, str]]) -> None:
    for pieces in ([text], [*text, ""]):
        events = read(HarmonyParser(TOOLS), pieces)
        assert put_together(events) == (thoughts, content, calls)
        check_order(events)


_FRAGMENTS = [
    *MARKS,
    *(
        "assistant",
        "analysis",
        "final",
        "commentary",
        " to=functions.now",
        "to=",
        "functions.",
        "json",
        "{}",
        '{"a": "',
        "<|",
        "|>",
    ),
    *(" ", "\n", "x", "é", "<|channel|>final<|message|>", "<|channel|>analysis<|message|>", _NEXT, "a" * 600, " " * 600),
]
_texts = st.lists(st.one_of(st.sampled_from(_FRAGMENTS), st.text(max_size=3)), max_size=20).map("".join)


@settings(max_examples=400)
@given(text=_texts, cuts=st.lists(st.integers(0, 5000), max_size=8), opened=st.booleans(), calls=st.booleans())
def test_any_cut_gives_what_the_whole_gives(text: str, cuts: list[int], opened: bool, calls: bool) -> None:
    def told(pieces: list[str]) -> object:
        events = read(HarmonyParser(TOOLS, opened=opened, calls=calls), pieces)
        check_order(events)
        return put_together(events)

    whole = told([text])
    assert told(pieces_of(text, cuts)) == whole
    assert told([*text, ""]) == whole


@settings(max_examples=200)
@given(st.text(alphabet="ab <|>to=\n", max_size=40))
def test_a_text_without_marks_is_content(text: str) -> None:
    expected = "" if text.isspace() else text
    assert put_together(read(HarmonyParser(TOOLS), [text])) == ("", expected, [])


def test_parts_come_while_they_are_written() -> None:
    parser = HarmonyParser(TOOLS)
    assert parser.feed("<|channel|>") == parser.feed("analysis") == parser.feed("<|message|>") == []
    assert parser.feed("Let me") == [Reasoning("Let me")]
    assert parser.feed(" see <|en") == [Reasoning(" see ")]
    assert parser.feed("d|>") == parser.feed("<|start|>assistant<|channel|>commentary to=functions.weather ") == []
    assert parser.feed("<|constrain|>json<|message|>") == [CallBegun(0, "weather")]
    assert parser.feed('{"city": "Pa') == [Arguments(0, '{"city": "Pa')]
    assert parser.feed('ris"}') == [Arguments(0, 'ris"}')]
    assert parser.feed("", final=True) == [CallEnded(0)]
    assert parser.num_calls == 1


def test_text_that_goes_on_is_content() -> None:
    assert put_together(read(HarmonyParser(TOOLS, opened=True), ["more.<|end|>"])) == ("", "more.", [])


def test_without_tools_a_call_is_content() -> None:
    parser = HarmonyParser([], calls=False)
    assert read(parser, ["<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}<|call|>"]) == [Content("{}")]


def test_what_is_held_back_is_bounded() -> None:
    for start in ("<|channel|>", "<|start|>", " ", "to=", "<|channel|>final<|message|>"):
        parser = HarmonyParser(TOOLS)
        for piece in [start, *["a" * 100] * 100]:
            parser.feed(piece)
        assert len(parser._text) < 1000


@pytest.mark.parametrize(
    ("prompt", "is_open"),
    [
        ("…<|end|><|start|>assistant", False),
        ("…<|end|>", False),
        ("<|start|>assistant<|channel|>final<|message|>The answer", True),
        ("the end of a long text", True),
    ],
)
def test_what_a_prompt_leaves_open(prompt: str, is_open: bool) -> None:
    assert leaves_open(prompt) is is_open
