"""Rotary frequencies, and what files say of them: merged where it agrees, refused where it does not."""

from typing import Any

import numpy as np
import pytest

from protocol.errors import ModelError
from tpu_worker.models.rope import Rope, RopeScaling, rope_from_config, rope_scaling_from_gguf

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _unsaid(key: str, default: float | None) -> float:
    if default is None:
        raise ModelError(f"m.gguf: rope.scaling.{key} is missing")
    return default


def test_llama3_scaling_of_llama_3_2() -> None:
    """Llama 3.2 1B's own numbers: high frequencies stay, low ones are divided by 32, some lie in between."""
    rope = rope_from_config("config.json", {"rope_theta": 500000.0, "rope_scaling": LLAMA3}, 64)
    assert rope == Rope(64, 500000.0, RopeScaling("llama3", 32.0, 1.0, 4.0, 8192))
    plain = 500000.0 ** -(np.arange(0, 64, 2) / 64)
    ratio = plain / rope.inverse_frequencies()
    waves = 2 * np.pi / plain
    np.testing.assert_allclose(ratio[waves < 8192 / 4], 1.0, rtol=1e-5)
    np.testing.assert_allclose(ratio[waves > 8192], 32.0, rtol=1e-5)
    between = (waves > 8192 / 4) & (waves < 8192)
    assert between.any() and ((ratio[between] > 1) & (ratio[between] < 32)).all()
    at = np.flatnonzero(between)[0]
    smooth = (8192 / waves[at] - 1) / 3
    np.testing.assert_allclose(rope.inverse_frequencies()[at], (1 - smooth) * plain[at] / 32 + smooth * plain[at], rtol=1e-5)


YARN = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}


def test_yarn_stretches_what_turns_seldom() -> None:
    """gpt-oss's own numbers: pairs of more than 32 turns in 4096 tokens stay, those of less than one are divided."""
    rope = rope_from_config("config.json", {"rope_theta": 150000.0, "rope_scaling": {**YARN, "truncate": False}}, 64)
    assert rope.amplitude == pytest.approx(1 + 0.1 * np.log(32))
    plain = 150000.0 ** -(np.arange(0, 64, 2) / 64)
    turns = 4096 * plain / (2 * np.pi)
    ratio = plain / rope.inverse_frequencies()
    np.testing.assert_allclose(ratio[turns > 32], 1.0, rtol=1e-5)
    np.testing.assert_allclose(ratio[turns < 1], 32.0, rtol=1e-5)
    between = (turns < 32) & (turns > 1)
    # A ramp by the number of the pair, which is the logarithm of its turns.
    share = 1 - np.log(turns[between]) / np.log(32)
    np.testing.assert_allclose(rope.inverse_frequencies()[between], plain[between] * (1 - share + share / 32), rtol=1e-4)


def test_linear_scaling_divides() -> None:
    rope = Rope(32, 500.0, RopeScaling("linear", 4.0))
    np.testing.assert_allclose(rope.inverse_frequencies()[:2], [0.25, 500.0 ** (-2 / 32) / 4], rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, Rope(64, 10000.0)),
        ({"rope_theta": 5e5}, Rope(64, 5e5)),
        ({"rope_theta": 500000, "rope_scaling": None, "rope_parameters": None}, Rope(64, 5e5)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, Rope(64, 5e5)),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, Rope(64, 10000.0, RopeScaling("linear", 2.0))),
        # one half here, the other there: both count
        (
            {"rope_theta": 5e5, "rope_scaling": {"factor": 2.0}, "rope_parameters": {"rope_type": "linear"}},
            Rope(64, 5e5, RopeScaling("linear", 2.0)),
        ),
        (
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}, "rope_scaling": {"rope_type": "default"}},
            Rope(64, 5e5),
        ),
        # what a newer file nests by the type of the layers
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}},
            Rope(64, 1e6),
        ),
        (
            {"original_max_position_embeddings": 8192, "rope_scaling": {**LLAMA3, "original_max_position_embeddings": None}},
            Rope(64, 10000.0, RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)),
        ),
        ({"partial_rotary_factor": 1.0}, Rope(64, 10000.0)),
    ],
)
def test_what_a_config_says(config: dict[str, Any], expected: Rope) -> None:
    assert rope_from_config("config.json", config, 64, "full_attention") == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}, "rope_parameters says rope_theta = 1000000.0, but config"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
            "rope_parameters says factor = 2.0, but rope_scaling says 4.0",
        ),
        ({"rope_scaling": {"rope_type": "linear", "type": "llama3", "factor": 2.0}}, "rope_type is 'linear', but type is 'llama3'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope scaling 'linear' needs factor"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "needs low_freq_factor, high_freq_factor, original_max",
        ),
        ({"rope_scaling": {"factor": 8.0}}, "a factor of 8.0, but no rope_type"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor is 0.0, but must be above 0"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -2.0}}, "factor is -2.0"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "Expected `float | null`, got `str`"),
        ({"rope_scaling": {"rope_type": "linear", "factor": True}}, "Expected `float | null`, got `bool`"),
        ({"rope_theta": 0}, "rope_theta is 0.0"),
        ({"rope_theta": -1e4}, "rope_theta is -10000.0"),
        ({"rope_theta": float("nan")}, "rope_theta is nan"),
        (
            {"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}},
            "low_freq_factor 4.0 must be above 0 and below high",
        ),
        ({"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 0}}, "original_max_position_embeddings is 0"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope scaling 'yarn' needs original_max_position_embeddings"),
        ({"rope_scaling": {"rope_type": "ntk", "factor": 4.0}}, "rope scaling 'ntk' is not supported"),
        ({"rope_scaling": {**YARN, "beta_slow": 64.0}}, "beta_slow 64.0 must not be above beta_fast 32.0"),
        ({"rope_scaling": [2.0]}, "rope_scaling is [2.0], not an object"),
        ({"partial_rotary_factor": 0.02}, "partial_rotary_factor 0.02 of heads of 64 is 1, not even"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor 1.5 of heads of 64 is 96"),
        (
            {"rope_parameters": {"a": {"rope_theta": 1e6}, "b": {"rope_theta": 1e4}}},
            "differs between a, b, but says nothing of",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        rope_from_config("config.json", config, 64, "full_attention")
    assert str(caught.value).startswith("config.json: ") and message in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "factor", "expected"),
    [(None, None, None), ("none", 4.0, None), (None, 4.0, 4.0), ("linear", 4.0, 4.0)],
)
def test_scaling_in_a_gguf_file(kind: object, factor: float | None, expected: float | None) -> None:
    scaling = rope_scaling_from_gguf("m.gguf", kind, factor, _unsaid)
    assert scaling == (None if expected is None else RopeScaling("linear", expected))


@pytest.mark.parametrize(
    ("kind", "factor", "message"),
    [
        ("longrope", 4.0, "'longrope' is not supported"),
        ("yarn", 4.0, "original_context_length is missing"),
        ("linear", None, "factor is missing"),
        (None, 0.0, "must be above 0"),
        (7, 1.0, "7"),
    ],
)
def test_scaling_in_a_gguf_file_is_refused(kind: object, factor: float | None, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        rope_scaling_from_gguf("m.gguf", kind, factor, _unsaid)
