"""Tokens to text, piece by piece."""

import itertools
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models

from frontend.server.text.detokenizer import Detokenizer, before, decode
from frontend.server.text.token_bytes import TokenBytes
from frontend.server.text.tokenizer import Tokenizer
from protocol.errors import ModelError
from tests.frontend.server.text.kinds import FIRST_PIECE, SENTENCEPIECE, VOCABULARY

# The fixtures are read-only, so that examples may share them.
# The demo model's vocabulary lacks a few bytes: control characters, and the first byte of planes that hold no script.
_CHARACTERS = st.characters(exclude_characters="\ufffd", categories=["L", "N", "P", "S", "Zs"], max_codepoint=0x1FFFF)
_SETTINGS = settings(max_examples=150)


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


# Letters as their bytes, so that the library's decoder, which knows runs of bytes only as a whole, agrees on every character.
_PIECE = st.integers(FIRST_PIECE, len(VOCABULARY) - 1).map(lambda token_id: [token_id])
_LETTER = st.sampled_from("a \u00e4\u6f22\N{GRINNING FACE}").map(
    lambda letter: [VOCABULARY[f"<0x{byte:02X}>"] for byte in letter.encode()]
)
_IDS = st.lists(_PIECE | _LETTER | st.sampled_from([[1], [2], [999]]), max_size=20).map(lambda parts: [*itertools.chain(*parts)])


@pytest.mark.parametrize("kind", SENTENCEPIECE)
@_SETTINGS
@given(_IDS, st.booleans(), st.data())
def test_sentencepiece_behind_any_prompt(kind: str, ids: list[int], skip_special: bool, data: st.DataObject) -> None:
    tokenizer = SENTENCEPIECE[kind]
    table = tokenizer.bytes_shown(skip_special_tokens=skip_special)
    whole = tokenizer._fast.decode(ids, skip_special_tokens=skip_special)
    assert decode(table, ids) == "".join(_fed_singly(tokenizer, ids, skip_special=skip_special)) == whole
    cut = data.draw(st.integers(0, len(ids)))
    _check_cut(table, ids, cut, whole)


@_SETTINGS
@given(st.lists(st.integers(0, 49151) | st.integers(0, 300), max_size=40), st.booleans(), st.data())
def test_byte_level_behind_any_prompt(demo_tokenizer: Tokenizer, ids: list[int], skip_special: bool, data: st.DataObject) -> None:
    whole = demo_tokenizer._fast.decode(ids, skip_special_tokens=skip_special)
    cut = data.draw(st.integers(0, len(ids)))
    _check_cut(demo_tokenizer.bytes_shown(skip_special_tokens=skip_special), ids, cut, whole)


def _check_cut(table: TokenBytes, ids: list[int], cut: int, whole: str) -> None:
    """A completion is the text of prompt and completion less the text of the prompt, at once or token by token."""
    echo, prompt, completion = decode(table, ids[:cut], final=False), np.array(ids[:cut], np.int32), ids[cut:]
    assert echo + Detokenizer(table, prompt).feed(completion, final=True) == whole
    singly = Detokenizer(table, prompt)
    assert echo + "".join(singly.feed((token_id,)) for token_id in completion) + singly.feed((), final=True) == whole
    taken = Detokenizer(table, prompt)
    pieces = [taken.decode(taken.take(token_id)) for token_id in completion]
    assert echo + "".join(pieces) + taken.feed((), final=True) == whole


@pytest.mark.parametrize(("kind", "text"), [("llama2", " a"), ("metaspace", " a"), ("gemma", " a"), ("unigram", " a")])
def test_a_completion_keeps_its_leading_space(kind: str, text: str) -> None:
    tokenizer = SENTENCEPIECE[kind]
    prompt, word = np.array([VOCABULARY["b"]], np.int32), [VOCABULARY["\u2581a"]]
    assert Detokenizer(tokenizer.bytes, prompt).feed(word, final=True) == text
    hidden = np.array([1, 1], np.int32)  # no text goes before: here the text begins
    begins = text if kind == "gemma" else text.lstrip()
    assert Detokenizer(tokenizer.bytes_without_special, hidden).feed(word, final=True) == begins


def test_the_cost_of_a_prompt_does_not_grow_with_it(demo_tokenizer: Tokenizer) -> None:
    class Counting(TokenBytes):
        looked_up = 0

        def __getitem__(self, token_id: int) -> bytes:
            self.looked_up += 1
            return super().__getitem__(token_id)

    table = Counting(demo_tokenizer._fast)
    Detokenizer(table, np.full(100_000, 33, np.int32))
    assert table.looked_up <= 8
    table = Counting(demo_tokenizer._fast, hidden={7, 8})
    prompt = np.array([33, *[7, 8] * 50_000], np.int32)
    assert before(table, prompt) == before(table, prompt[:1])
    assert table.looked_up <= 30


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.Strip(" ", 1, 0),
        decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]),
        decoders.Sequence([decoders.Fuse(), decoders.Strip("_", 1, 0)]),
        decoders.Replace("_", " "),
        decoders.Metaspace(replacement="_"),
    ],
)
def test_a_decoder_that_cannot_be_run_token_by_token_is_refused(decoder: decoders.Decoder) -> None:
    fast = FastTokenizer(models.BPE(vocab=VOCABULARY, merges=[]))
    fast.decoder = decoder
    with pytest.raises(ModelError, match="decoder"):
        TokenBytes(fast)


@_SETTINGS
@given(st.text(alphabet=st.characters(categories=["Lo", "So", "Mn"]), min_size=1, max_size=12), st.data())
def test_any_cut_gives_the_same_text(demo_tokenizer: Tokenizer, text: str, data: st.DataObject) -> None:
    ids = demo_tokenizer.encode(unicodedata.normalize("NFC", text))
    cut = data.draw(st.integers(0, len(ids)))
    detokenizer = Detokenizer(demo_tokenizer.bytes)
    assert detokenizer.feed(ids[:cut]) + detokenizer.feed(ids[cut:], final=True) == decode(demo_tokenizer.bytes, ids)
