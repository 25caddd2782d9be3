"""Tokens to shown text, and which token brought which bytes of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.server.text.detokenizer import decode
from frontend.server.text.output import OutputText, TokenText
from frontend.server.text.stops import StopPatterns
from frontend.server.text.tokenizer import Tokenizer
from tests.frontend.server.text.kinds import SENTENCEPIECE, VOCABULARY

_EMOJI = "\N{GRINNING FACE}"


def _expected(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The obvious way: the first place where a stop string ends, and the longest that ends there."""
    for end in range(1, len(text) + 1):
        if ending := [stop for stop in stops if text[:end].endswith(stop)]:
            longest = max(ending, key=len)
            return (text[:end] if include else text[: end - len(longest)]), longest
    return text, None


@settings(max_examples=300)
@given(st.data())
def test_the_bytes_of_all_tokens_are_the_text(demo_tokenizer: Tokenizer, data: st.DataObject) -> None:
    tokenizer = data.draw(st.sampled_from([demo_tokenizer, *SENTENCEPIECE.values()]))
    most = min(tokenizer.vocab_size, 300) - 1
    sequences = st.lists(st.integers(0, most), max_size=30)
    if tokenizer is demo_tokenizer:  # whole characters as often as parts of them
        texts = st.text(st.sampled_from("ab \u00e4\u6f22" + _EMOJI), max_size=12).map(tokenizer.encode)
        sequences = st.one_of(sequences, texts)
    prompt, ids = data.draw(sequences), data.draw(sequences)
    table = tokenizer.bytes_shown(skip_special_tokens=data.draw(st.booleans()))
    echo = decode(table, prompt, final=False)
    text = decode(table, prompt + ids)[len(echo) :]
    cuts = st.tuples(st.integers(0, len(text)), st.integers(1, 6)).map(lambda cut: text[cut[0] : sum(cut)] or "#")
    stops, include = data.draw(st.lists(cuts, max_size=3)), data.draw(st.booleans())

    patterns = StopPatterns(stops, include_in_output=include) if stops else None
    output = OutputText(table, np.array(prompt, np.int32), patterns, tracks=True)
    shown, fed, found = "", 0, None
    released: list[TokenText] = []
    for token_id in ids:
        piece, found = output.feed_one(token_id)
        shown, fed = shown + piece, fed + 1
        released += output.released()
        if found is not None:
            break
        so_far = b"".join(token.data for token in released).decode(errors="replace")
        assert not stops or shown.startswith(so_far)  # nothing that a stop string may still take back
    if found is None:
        piece, found = output.end()
        shown += piece
        released += output.released()

    assert (shown, found) == _expected(text, stops, include)
    assert len(released) == fed
    together = b"".join(token.data for token in released)
    if together or shown.strip("\ufffd"):  # else no token brought text, and what shows is the prompt's open end
        assert together.decode(errors="replace") == shown
    if "\ufffd" not in shown:
        assert together == shown.encode()
    lengths = [len(decode(table, prompt + ids[:index], final=False)) - len(echo) for index in range(fed)]
    assert [token.offset for token in released] == [min(length, len(shown)) for length in lengths]


def test_a_prompt_that_ends_within_a_character(demo_tokenizer: Tokenizer) -> None:
    *prompt, last = demo_tokenizer.encode("x" + _EMOJI)
    output = OutputText(demo_tokenizer.bytes, np.array(prompt, np.int32), None, tracks=True)
    assert output.feed_one(last) == (_EMOJI, None)
    assert output.released() == [TokenText(0, _EMOJI.encode())]
    assert decode(demo_tokenizer.bytes, prompt, final=False) == "x"
    assert OutputText(demo_tokenizer.bytes, np.array(prompt, np.int32), None).feed([33], final=True) == "\ufffd1"


@pytest.mark.parametrize("kind", SENTENCEPIECE)
def test_a_stop_string_with_a_leading_space(kind: str) -> None:
    output = OutputText(SENTENCEPIECE[kind].bytes, np.array([VOCABULARY["b"]], np.int32), StopPatterns([" a"]))
    assert output.feed_one(VOCABULARY["\u2581a"]) == ("", " a")


def test_no_stop_string_ends_in_the_first_tokens(demo_tokenizer: Tokenizer) -> None:
    output = OutputText(demo_tokenizer.bytes, np.array([33], np.int32), StopPatterns(["x"]), min_tokens=2, tracks=True)
    pieces = [output.feed_one(token_id) for token_id in demo_tokenizer.encode("x y x y x")]
    assert "".join(shown for shown, _ in pieces).startswith("x y ")
    assert pieces[2][1] == "x"


def test_a_hidden_token_has_a_place_and_no_bytes(demo_tokenizer: Tokenizer) -> None:
    output = OutputText(demo_tokenizer.bytes, np.array([33], np.int32), None, tracks=True)
    for token_id in (19556, 2):
        output.feed_one(token_id, hidden=token_id == 2)
    output.end()
    assert output.released() == [TokenText(0, b"Hello"), TokenText(5, b"")]


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(["a", "b", "ab", "ba", "aa", "bb", "abb"]), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3),
    st.integers(0, 6),
    st.booleans(),
)
def test_a_stop_string_ends_behind_the_minimum(
    demo_tokenizer: Tokenizer, pieces: list[str], stops: list[str], min_tokens: int, include: bool
) -> None:
    """The obvious way: the first place behind the minimum where a stop string ends."""
    ids = [token_id for piece in pieces for token_id in demo_tokenizer.encode(piece)]
    patterns = StopPatterns(stops, include_in_output=include)
    output = OutputText(demo_tokenizer.bytes, np.array([33], np.int32), patterns, min_tokens=min_tokens)
    shown, found = "", None
    for token_id in ids:
        text, found = output.feed_one(token_id)
        shown += text
        if found is not None:
            break
    else:
        shown += output.end()[0]
    whole, first = "".join(pieces), len(decode(demo_tokenizer.bytes, ids[:min_tokens]))
    ends = [end for end in range(first + 1, len(whole) + 1) if any(whole[:end].endswith(stop) for stop in stops)]
    if not ends:
        assert (shown, found) == (whole, None)
    else:
        assert (shown, found) == _expected_at(whole[: ends[0]], stops, include)


def _expected_at(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    longest = max((stop for stop in stops if text.endswith(stop)), key=len)
    return (text if include else text[: len(text) - len(longest)]), longest
