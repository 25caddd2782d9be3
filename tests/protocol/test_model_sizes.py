"""The sizes of a model, as its files say them, and in words."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.model_files import read_model_facts
from protocol.model_sizes import ModelSizes, sizes_from_config, sizes_from_gguf
from tests.model_writer import write_gguf, write_huggingface

SIZE = st.integers(0, 2**31 - 1)


@given(st.builds(ModelSizes, SIZE, SIZE, SIZE, SIZE, SIZE, SIZE, SIZE, SIZE))
def test_a_digest_says_all_of_it(sizes: ModelSizes) -> None:
    assert ModelSizes.parse(sizes.digest) == sizes


@given(st.text())
def test_what_is_no_digest(text: str) -> None:
    assert ModelSizes.parse(text) is None
    assert ModelSizes.parse(ModelSizes().digest + "." + text) is None


def test_both_formats_say_the_same(tmp_path: Path) -> None:
    huggingface = write_huggingface(tmp_path / "m")
    gguf = write_gguf(tmp_path / "m.gguf")
    expected = ModelSizes(2, 8, 1, 1, 8, 8, 0, 10)
    assert read_model_facts(huggingface, "huggingface").sizes == read_model_facts(gguf, "gguf").sizes == expected
    assert expected.digest == "2 layers of width 8, 1 heads, 1 KV heads of 8, 0 experts, MLP 8, vocabulary 10"


def test_of_experts_and_of_layers_that_differ() -> None:
    config = {
        "num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16,
        "intermediate_size": 100, "moe_intermediate_size": 24, "num_experts": 6,
    }  # fmt: skip
    metadata = {
        "a.block_count": 4, "a.embedding_length": 64, "a.attention.head_count": 8, "a.attention.head_count_kv": [2, 1, 2, 1],
        "a.attention.key_length": 16, "a.feed_forward_length": 100, "a.expert_feed_forward_length": 24, "a.expert_count": 6,
    }  # fmt: skip
    expected = ModelSizes(4, 64, 8, 2, 16, 24, 6, 50)
    assert sizes_from_config(config, 50) == sizes_from_gguf(metadata, "a", 50) == expected


@pytest.mark.parametrize("value", [None, -1, 0, True, 1.5, "8", 2**31, [], [True], {}])
def test_what_is_no_size_is_not_said(value: object) -> None:
    assert sizes_from_config({"hidden_size": value, "num_attention_heads": value}, 7) == ModelSizes(vocab_size=7)


def test_the_head_of_a_small_model_costs_more() -> None:
    """Llama 3.2 1B: 128256 × 2048 against 16 × (2048 × 64 × 2 × 40 + 3 × 2048 × 8192)."""
    assert ModelSizes(16, 2048, 32, 8, 64, 8192, 0, 128256).head_cost == 262668288 / (16 * 60817408)
    assert ModelSizes().head_cost == 0
