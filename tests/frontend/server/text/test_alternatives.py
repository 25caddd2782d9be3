"""One pattern for many texts."""

import re

from hypothesis import given
from hypothesis import strategies as st

from frontend.server.text.alternatives import any_of

_TEXTS = st.sets(st.text("ab|(^", min_size=1, max_size=5), max_size=8)


@given(_TEXTS, st.text("ab|(^c", max_size=20))
def test_the_longest_of_the_texts(texts: set[str], text: str) -> None:
    obvious = "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)"
    assert re.findall(any_of(texts), text) == re.findall(obvious, text)


def test_a_thousand_texts_that_begin_alike_are_one_branch() -> None:
    texts = [f"<|special_{number}|>" for number in range(1000)]
    assert len(any_of(texts)) < len("|".join(map(re.escape, texts))) / 3
    assert any_of(texts).startswith("<\\|special_(?:")
