"""What a JSON text is made of is counted without decoding it."""

import json
from typing import Any

import httpx
from hypothesis import given
from hypothesis import strategies as st

from frontend.server.api.structure import parts
from frontend.server.http.limits import MAX_BODY, body_limit

_TEXTS = st.text(st.sampled_from('a"\\[]{}:,\n ä'), max_size=8)
_JSON = st.recursive(
    st.none() | st.integers() | _TEXTS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXTS, inner, max_size=4)
)


def _count(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(_count, value.values()))
    return 1 + sum(map(_count, value)) if isinstance(value, list) else 0


@given(_JSON, st.booleans())
def test_the_count_is_that_of_the_decoded_value(value: Any, ascii_only: bool) -> None:
    assert parts(json.dumps(value, ensure_ascii=ascii_only).encode()) == _count(value)


@given(st.binary(max_size=200))
def test_anything_is_counted(data: bytes) -> None:
    assert 0 <= parts(data) <= len(data)


def test_bodies_follow_from_the_context() -> None:
    assert body_limit(2048) < body_limit(8192) < 1 << 23
    assert body_limit(8192) > 64 * 8192 * 6  # a batch of full contexts, as numbers
    assert body_limit(1 << 20) == MAX_BODY


def test_a_body_of_very_many_parts_is_refused_and_one_long_text_is_not(http: httpx.Client) -> None:
    answer = http.post("/v1/completions", json={"prompt": [[]] * 200_000})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "too_many_parts")
    answer = http.post("/tokenize", json={"prompt": '[{":"}]' * 60_000})
    assert answer.status_code == 200
    answer = http.post("/detokenize", json={"tokens": [5] * 9000})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
