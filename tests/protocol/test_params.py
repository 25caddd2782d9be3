"""Bounds of the sampling parameters."""

import math

import msgspec
import pytest

from protocol.params import MAX_CHOICES, EngineParams, ParameterError, SamplingParams, check


def test_defaults_are_valid() -> None:
    check(SamplingParams(), vocab_size=10)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0), ("n", MAX_CHOICES + 1), ("max_tokens", 0), ("max_tokens", -1), ("min_tokens", -1), ("temperature", -0.1),
        ("temperature", math.nan), ("temperature", math.inf), ("top_p", 0.0), ("top_p", 1.1), ("top_p", math.nan), ("top_k", -2),
        ("min_p", -0.1), ("min_p", 1.1), ("seed", 2**63), ("repetition_penalty", 0.0), ("repetition_penalty", 1e-40),
        ("presence_penalty", 2.1), ("frequency_penalty", -2.1), ("logprobs", 21), ("logprobs", -1), ("stop", [""]),
        ("stop", ["x"] * 17), ("stop_token_ids", [10]), ("stop_token_ids", [-1]), ("stop_token_ids", [1] * 17), ("priority", 2**31),
    ],
)  # fmt: skip
def test_values_out_of_range_name_their_field(field: str, value: object) -> None:
    params = msgspec.structs.replace(SamplingParams(), **{field: value})
    with pytest.raises(ParameterError) as caught:
        check(params, vocab_size=10)
    assert caught.value.param == field and field in str(caught.value)


def test_min_tokens_above_max_tokens() -> None:
    with pytest.raises(ParameterError, match="min_tokens"):
        check(SamplingParams(max_tokens=3, min_tokens=4), vocab_size=10)


def test_a_temperature_near_zero_is_greedy() -> None:
    assert [EngineParams(1, temperature=t).is_greedy for t in (0.0, 1e-38, 9.9e-6, 1e-5, 1.0)] == [True, True, True, False, False]
