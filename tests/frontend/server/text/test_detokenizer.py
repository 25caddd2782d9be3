"""Tokens to text, piece by piece."""

import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer

from frontend.server.text.detokenizer import Detokenizer, decode
from frontend.server.text.tokenizer import Tokenizer

# The fixtures are read-only, so that examples may share them.
# The demo model's vocabulary lacks a few bytes: control characters, and the first byte of planes that hold no script.
_CHARACTERS = st.characters(exclude_characters="\ufffd", categories=["L", "N", "P", "S", "Zs"], max_codepoint=0x1FFFF)
_SETTINGS = settings(max_examples=150, deadline=None)


def _fed_singly(tokenizer: Tokenizer, token_ids: list[int], *, skip_special: bool) -> list[str]:
    detokenizer = Detokenizer(tokenizer.bytes_without_special if skip_special else tokenizer.bytes)
    return [*(detokenizer.feed((token_id,)) for token_id in token_ids), detokenizer.feed((), final=True)]


@_SETTINGS
@given(st.lists(st.integers(0, 49151), max_size=60), st.booleans())
def test_pieces_make_the_text_of_the_tokenizers_own_decoder(demo_tokenizer: Tokenizer, ids: list[int], skip_special: bool) -> None:
    whole = demo_tokenizer._fast.decode(ids, skip_special_tokens=skip_special)
    assert "".join(_fed_singly(demo_tokenizer, ids, skip_special=skip_special)) == whole
    table = demo_tokenizer.bytes_without_special if skip_special else demo_tokenizer.bytes
    assert decode(table, ids) == whole


@_SETTINGS
@given(st.lists(st.integers(0, 300), max_size=60))
def test_low_ids_which_are_single_bytes_and_special_tokens(demo_tokenizer: Tokenizer, ids: list[int]) -> None:
    whole = demo_tokenizer._fast.decode(ids, skip_special_tokens=False)
    assert "".join(_fed_singly(demo_tokenizer, ids, skip_special=False)) == whole


@_SETTINGS
@given(st.text(_CHARACTERS, max_size=40))
def test_a_character_is_never_split(demo_tokenizer: Tokenizer, text: str) -> None:
    pieces = _fed_singly(demo_tokenizer, demo_tokenizer.encode(text), skip_special=False)
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) == text


def test_an_emoji_shows_with_its_last_token_only(demo_tokenizer: Tokenizer) -> None:
    pieces = _fed_singly(demo_tokenizer, demo_tokenizer.encode("\N{SNOWMAN}\N{GRINNING FACE}"), skip_special=True)
    shown = [piece for piece in pieces if piece]
    assert shown == ["\N{SNOWMAN}", "\N{GRINNING FACE}"]
    assert len(pieces) > len(shown)


def test_an_unfinished_character_ends_as_a_replacement(demo_tokenizer: Tokenizer) -> None:
    ids = demo_tokenizer.encode("\N{GRINNING FACE}")
    assert decode(demo_tokenizer.bytes, ids[:-1]) == "\ufffd"


def test_ids_without_a_text_are_empty(demo_tokenizer: Tokenizer) -> None:
    assert decode(demo_tokenizer.bytes, [-1, 60_000, 2**31, 2**40]) == ""


@_SETTINGS
@given(st.lists(st.sampled_from(["a", "b", "bc", " ", "  ", "\u00e4", "\u6f22", "\N{GRINNING FACE}"]), max_size=20))
def test_sentencepiece_pieces_make_the_library_s_text(
    sentencepiece: Tokenizer, sentencepiece_fast: FastTokenizer, words: list[str]
) -> None:
    text = "".join(words)
    ids = sentencepiece.encode(text)
    assert "".join(_fed_singly(sentencepiece, ids, skip_special=True)) == sentencepiece_fast.decode(ids) == text


def test_sentencepiece_strips_one_leading_space_also_behind_a_hidden_token(sentencepiece: Tokenizer) -> None:
    ids = [1, *sentencepiece.encode(" a"), 2]
    assert "".join(_fed_singly(sentencepiece, ids, skip_special=True)) == " a"


@_SETTINGS
@given(st.text(alphabet=st.characters(categories=["Lo", "So", "Mn"]), min_size=1, max_size=12), st.data())
def test_any_cut_gives_the_same_text(demo_tokenizer: Tokenizer, text: str, data: st.DataObject) -> None:
    ids = demo_tokenizer.encode(unicodedata.normalize("NFC", text))
    cut = data.draw(st.integers(0, len(ids)))
    detokenizer = Detokenizer(demo_tokenizer.bytes)
    assert detokenizer.feed(ids[:cut]) + detokenizer.feed(ids[cut:], final=True) == decode(demo_tokenizer.bytes, ids)
