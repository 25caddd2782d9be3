"""From users' terms to the engine's: bad words become tokens, and what leaves nothing to choose is refused."""

from typing import Any

import numpy as np
import pytest

from frontend.errors import InvalidRequest
from frontend.server.rules import Rules, resolve_rules
from frontend.server.text.tokenizer import Tokenizer, load_tokenizer
from protocol.codec import unpack_bits
from protocol.params import SamplingParams
from tests.frontend.server.api.running import demo_config
from tests.frontend.server.text.kinds import SENTENCEPIECE

VOCAB = 49152


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(demo_config())


def resolved(tokenizer: Tokenizer, vocab_size: int = VOCAB, stop_ids: tuple[int, ...] = (2,), **fields: Any) -> Rules:
    return resolve_rules(SamplingParams(**fields), list(stop_ids), vocab_size, tokenizer)


def test_bad_words_are_meant_at_the_beginning_and_behind_a_space(tokenizer: Tokenizer) -> None:
    words = resolved(tokenizer, bad_words=["  Paris"]).bad_words
    assert [tokenizer.names_of(word) for word in words] == [["Paris"], ["ĠParis"]]


@pytest.mark.parametrize("kind", SENTENCEPIECE)
def test_so_they_are_with_sentencepiece(kind: str) -> None:
    tokenizer = SENTENCEPIECE[kind]
    words = resolved(tokenizer, 10_000, bad_words=["bc"]).bad_words
    assert {tuple(tokenizer.encode(text, add_special_tokens=False)) for text in ("bc", " bc")} == set(words)


def test_allowed_ids_are_bits(tokenizer: Tokenizer) -> None:
    rules = resolved(tokenizer, allowed_token_ids=[5, 5, 49151, 0])
    assert np.flatnonzero(unpack_bits(rules.allowed_bits, VOCAB)).tolist() == [0, 5, 49151]
    assert len(rules.allowed_bits) == VOCAB // 8


def test_nothing_asked_is_nothing(tokenizer: Tokenizer) -> None:
    assert resolved(tokenizer) == Rules({}, b"", ())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"allowed_token_ids": [5], "logit_bias": {5: -100.0}}, "allowed_token_ids"),
        ({"allowed_token_ids": [2], "min_tokens": 1}, "min_tokens"),
        ({"bad_words": ["one two three four five six seven eight nine ten eleven twelve 13 14 15"]}, "bad_words"),
    ],
)
def test_what_leaves_nothing_is_refused(tokenizer: Tokenizer, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolved(tokenizer, **fields)
    assert caught.value.param == param


def test_a_banned_word_that_is_all_that_is_allowed_is_refused(tokenizer: Tokenizer) -> None:
    (paris,) = tokenizer.encode(" Paris")
    with pytest.raises(InvalidRequest, match="allowed_token_ids, bad_words: together they leave no token"):
        resolved(tokenizer, allowed_token_ids=[paris], bad_words=["Paris"])
    resolved(tokenizer, allowed_token_ids=[paris, 2], bad_words=["Paris"], min_tokens=0)
