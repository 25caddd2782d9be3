"""Long texts are encoded while other threads run, and to the same ids."""

import threading

import pytest

from frontend.server.text.encoding import token_ids
from frontend.server.text.tokenizer import Tokenizer
from tests.frontend.server.text.kinds import SENTENCEPIECE


@pytest.mark.parametrize("kind", ["demo", *SENTENCEPIECE])
@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_a_long_text_has_the_ids_that_it_has_when_it_is_encoded_alone(
    demo_tokenizer: Tokenizer, kind: str, add_special_tokens: bool
) -> None:
    fast = (demo_tokenizer if kind == "demo" else SENTENCEPIECE[kind])._fast
    text = "<s> abc  ende\u00e4 \U0001f600 <|im_end|>\n\tabcabc" * 500
    assert (
        token_ids(fast, text, add_special_tokens=add_special_tokens) == fast.encode(text, add_special_tokens=add_special_tokens).ids
    )


def test_lone_surrogates_are_refused_in_texts_of_any_length(demo_tokenizer: Tokenizer) -> None:
    for text in ("\ud800", "\ud800" * 10_000):
        with pytest.raises((TypeError, UnicodeEncodeError)):
            token_ids(demo_tokenizer._fast, text, add_special_tokens=True)


def test_other_threads_run_meanwhile(demo_tokenizer: Tokenizer) -> None:
    begun, ended, turns = threading.Event(), threading.Event(), 0

    def encode() -> None:
        begun.set()
        token_ids(demo_tokenizer._fast, "hello " * 50_000, add_special_tokens=True)
        ended.set()

    thread = threading.Thread(target=encode)
    thread.start()
    begun.wait()
    while not ended.wait(0.001):
        turns += 1
    thread.join()
    assert turns > 10, "the library kept Python's lock"
