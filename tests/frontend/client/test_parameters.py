"""Parameters that users pass, checked before anything travels."""

from enum import IntEnum
from typing import Any, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.client.parameters import SamplingFields, checked, checked_salt, merged
from frontend.client.structured import StructuredFields
from frontend.errors import InvalidRequest
from protocol.codec import encode
from protocol.params import SamplingParams


class Text(str):
    """As libraries have them: a string, but not to an encoder."""

    __slots__ = ()


class Number(IntEnum):
    FIVE = 5


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2**70}, "max_tokens"),
        ({"max_tokens": 5.0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"min_tokens": -(2**70)}, "min_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_p": float("-inf")}, "top_p"),
        ({"top_k": 2**70}, "top_k"),
        ({"min_p": [0.5]}, "min_p"),
        ({"presence_penalty": np.float64("nan")}, "presence_penalty"),
        ({"frequency_penalty": None}, "frequency_penalty"),
        ({"repetition_penalty": 2**70}, "repetition_penalty"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 2**70}, "logprobs"),
        ({"n": 10**9}, "n"),
        ({"n": 10**5000}, "n"),  # has more digits than Python prints
        ({"seed": 2**63}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": -(2**80)}, "seed"),
        ({"stop": "END"}, "stop"),
        ({"stop": ["a", 5]}, "stop[1]"),
        ({"stop": ["a", "\ud800"]}, "stop[1]"),
        ({"stop": [Text("\ud800")]}, "stop[0]"),
        ({"stop": object()}, "stop"),
        ({"stop_token_ids": [50]}, "stop_token_ids"),
        ({"stop_token_ids": [2**70]}, "stop_token_ids"),
        ({"stop_token_ids": [1, "2"]}, "stop_token_ids[1]"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"detokenize": "no"}, "detokenize"),
        ({"priority": -(2**70)}, "priority"),
    ],
)
def test_of_a_wrong_type_or_out_of_range(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest, match=param.partition("[")[0]) as refused:
        checked(SamplingParams(**fields), vocab_size=50)
    assert refused.value.param == param


def test_numbers_and_texts_of_other_kinds_are_taken_for_what_they_are() -> None:
    odd = SamplingParams(
        max_tokens=Number.FIVE,
        top_k=np.int64(3),  # type: ignore[arg-type]
        temperature=np.float32(0.5),  # type: ignore[arg-type]
        stop_token_ids=np.array([1, 2]),  # type: ignore[arg-type]
        stop=(Text("a"), np.str_("b")),  # type: ignore[arg-type]
    )
    plain = SamplingParams(max_tokens=5, top_k=3, temperature=0.5, stop_token_ids=[1, 2], stop=["a", "b"])
    assert encode(checked(odd, vocab_size=50)) == encode(plain)


def test_what_is_no_parameters() -> None:
    with pytest.raises(InvalidRequest, match="not dict"):
        checked({"max_tokens": 5}, vocab_size=50)  # type: ignore[arg-type]
    assert checked(None, vocab_size=50) == SamplingParams()


@pytest.mark.parametrize("salt", [None, 5, b"salt", "\ud800"])
def test_what_is_no_salt(salt: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        checked_salt(salt)
    assert refused.value.param == "cache_salt"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.characters(categories=["Cs"]),
    lambda inner: st.lists(inner, max_size=3) | st.sets(st.integers(), max_size=2) | st.tuples(inner),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from(SamplingParams.__struct_fields__), anything, min_size=1, max_size=3))
def test_whatever_is_passed_travels_or_is_an_invalid_request_that_names_one_of_the_fields(fields: dict[str, Any]) -> None:
    try:
        assert encode(checked(SamplingParams(**fields), vocab_size=50))
    except InvalidRequest as refused:
        assert refused.param is not None
        assert refused.param.partition("[")[0] in fields


def test_the_keywords_are_the_fields() -> None:
    kinds = get_type_hints(SamplingParams)
    fields = {name: kinds[name] for name in SamplingParams.__struct_fields__}
    del fields["timeout"]  # the client's methods have one of their own
    assert get_type_hints(SamplingFields) == fields | get_type_hints(StructuredFields)


def test_what_is_given_by_name_wins() -> None:
    params = SamplingParams(max_tokens=3, seed=1)
    assert merged(None, {}) is None
    assert merged(params, {}) is params
    assert merged(None, {"top_k": 2}) == SamplingParams(top_k=2)
    assert merged(params, {"max_tokens": 5}) == SamplingParams(max_tokens=5, seed=1)
    assert merged([params, SamplingParams()], {"seed": 9}) == [SamplingParams(max_tokens=3, seed=9), SamplingParams(seed=9)]


def test_a_keyword_that_is_none_is_a_type_error_that_names_the_nearest() -> None:
    wrong: Any = {"max_token": 5}
    with pytest.raises(TypeError, match="'max_token' is no sampling parameter; did you mean 'max_tokens'"):
        merged(None, wrong)


def test_a_representation_shows_what_was_set() -> None:
    assert repr(SamplingParams(max_tokens=3)) == "SamplingParams(max_tokens=3)"
