"""Thoughts are told from answers, however the text is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.server.text.thinking import PARSERS, THINK, Tags, ThoughtSplitter, detect, leaves_open
from tests.frontend.server.text.tools.read import pieces_of


def _split(pieces: list[str], *, opened: bool = False, tags: Tags = THINK) -> tuple[str, str]:
    splitter = ThoughtSplitter(tags, opened=opened)
    parts = [splitter.feed(piece) for piece in pieces[:-1]] + [splitter.feed(pieces[-1], final=True)]
    return "".join(thoughts for thoughts, _ in parts), "".join(answer for _, answer in parts)


@pytest.mark.parametrize(
    ("text", "opened", "thoughts", "answer"),
    [
        ("<think>\nHm.\n</think>\n\nYes.\n", False, "Hm.", "Yes.\n"),
        ("Hm.\n</think>\n\nYes.", True, "Hm.", "Yes."),
        ("<think>Hm.</think>Yes.", True, "Hm.", "Yes."),  # the tag twice, as some models write it
        ("<think>\n\n</think>\n\nYes.", False, "", "Yes."),
        ("Yes. <think>", False, "", "Yes. <think>"),
        (" Yes </think>.", False, "", " Yes </think>."),
        ("<think>cut o", False, "cut o", ""),
        ("<thin", False, "", "<thin"),
        ("Hm </thin", True, "Hm </thin", ""),
        ("", False, "", ""),
        (" <think>a</think></think>", False, "a", "</think>"),
    ],
)
def test_thoughts_and_answer(text: str, opened: bool, thoughts: str, answer: str) -> None:
    assert _split([text], opened=opened) == (thoughts, answer)
    assert _split([*text, ""], opened=opened) == (thoughts, answer)


_fragments = st.sampled_from(["<think>", "</think>", "<th", "</", "ink>", "a", " ", "\n", "\n\n", " " * 70, "<"])


@given(text=st.lists(_fragments, max_size=12).map("".join), cuts=st.lists(st.integers(0, 300), max_size=6), opened=st.booleans())
def test_any_cut_gives_what_the_whole_gives(text: str, cuts: list[int], opened: bool) -> None:
    whole = _split([text], opened=opened)
    assert _split(pieces_of(text, cuts), opened=opened) == whole
    assert _split([*text, ""], opened=opened) == whole


def test_thoughts_come_while_they_are_thought() -> None:
    splitter = ThoughtSplitter(THINK, opened=False)
    pieces = ["<thi", "nk>\n", "Hm", ".\n", "</th", "ink>", "\n", "Yes"]
    assert [splitter.feed(piece) for piece in pieces] == [
        *[("", "")] * 2,
        *[("Hm", ""), (".", "")],
        *[("", "")] * 3,
        ("", "Yes"),
    ]


def test_models_that_always_think() -> None:
    tags = PARSERS["deepseek_r1"]
    assert tags is not None and _split(["Hm.</think>Yes."], tags=tags) == ("Hm.", "Yes.")


def test_a_template_tells_the_tags() -> None:
    assert detect("{{ content.split('</think>')[-1] }}") == THINK
    assert detect("[THINK]{{ thoughts }}[/THINK]") == PARSERS["mistral"]
    assert detect("{{ content }}") is None
    assert leaves_open(THINK, "<|im_start|>assistant\n<think>\n")
    assert not leaves_open(THINK, "<|im_start|>assistant\n<think>\n\n</think>\n\n")
