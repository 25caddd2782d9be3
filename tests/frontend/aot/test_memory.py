"""What fits, and what would help: each way out is taken, and then it fits."""

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.aot.memory import cache_memory, gib, longest_context, misfit
from protocol.aot_messages import Drawn
from protocol.cache_groups import CacheGroups
from protocol.chips import parse_topology
from protocol.config import EngineConfig
from tests.frontend.aot.reports import config_of
from tests.frontend.aot.stand_in import BLOCK_SIZE, GIB, PER_TOKEN, drawn

ONE, FOUR = parse_topology("v6e:1x1"), parse_topology("v6e:2x2")


def drawn_for(config: EngineConfig, **changes: Any) -> Drawn:
    """With as many blocks as there is memory for, as the worker counts them."""
    found = drawn(**changes)
    groups = CacheGroups(found.windows, found.block_size, config.max_num_batched_tokens)
    return msgspec.structs.replace(
        found,
        blocks_per_sequence=groups.demand(found.max_model_len),
        num_blocks=cache_memory(found, config) // found.bytes_per_block,
    )


def test_the_cache_gets_what_the_worker_would_give_it() -> None:
    left = 32 * GIB - 2 * GIB - GIB
    assert cache_memory(drawn(), config_of()) == int(0.85 * left)
    assert cache_memory(drawn(), config_of(kv_cache_memory=5 * GIB)) == 5 * GIB
    assert cache_memory(drawn(), config_of(kv_cache_memory=left + 1)) == 0
    assert cache_memory(drawn(), config_of(gpu_memory_utilization=0.5)) == left - 16 * GIB
    assert cache_memory(drawn(weights=40 * GIB), config_of()) == 0


def test_what_fits_has_nothing_to_be_helped() -> None:
    config = config_of()
    assert misfit(drawn_for(config), config, ONE) == []


def test_the_longest_context_without_windows() -> None:
    config = config_of(kv_cache_memory=1000 * BLOCK_SIZE * PER_TOKEN + 5)
    assert longest_context(drawn(), config, 131072) == 1000 * BLOCK_SIZE
    assert longest_context(drawn(), config, 700) == 700
    assert longest_context(drawn(), config_of(kv_cache_memory=7), 700) == 0


@given(
    windows=st.lists(st.sampled_from([0, 128, 500, 4096]), min_size=1, max_size=3),
    blocks=st.integers(0, 300),
    most=st.integers(2, 40_000),
)
def test_the_longest_context_fits_and_one_block_more_does_not(windows: list[int], blocks: int, most: int) -> None:
    config = config_of(kv_cache_memory=max(1, blocks * BLOCK_SIZE * PER_TOKEN))
    groups = CacheGroups(tuple(windows), BLOCK_SIZE, config.max_num_batched_tokens)
    length = longest_context(drawn(windows=tuple(windows)), config, most)
    assert length == 0 or groups.demand(length) <= blocks
    assert length == most or groups.demand(min(most, length + BLOCK_SIZE)) > blocks


def test_a_context_too_long_says_by_how_much_and_what_would_do() -> None:
    config = config_of()
    found = drawn_for(config, max_model_len=1 << 20)  # 32 GiB
    problem, *ways = misfit(found, config, ONE)
    assert "does not fit on v6e:1x1: a sequence of 1048576 tokens takes 32.00 GiB of KV cache" in problem
    assert "there is room for 24.65 GiB (7.35 GiB too little)" in problem
    assert ways == [
        "would help: --max-model-len 807680 or less",
        "would help: --tensor-parallel-size 2 --topology v6e:1x2: weights of 1.00 GiB and 16.00 GiB of KV cache on each chip",
        "would help: --quantization int8: weights of 1.00 GiB, 1.00 GiB less, is not enough alone",
        "would help: --kv-cache-dtype fp8: 16.00 GiB of KV cache, 16.00 GiB less, fits",
    ]
    shorter = drawn_for(config, max_model_len=807680)
    assert misfit(shorter, config, ONE) == []
    assert misfit(drawn_for(config, max_model_len=807680 + BLOCK_SIZE), config, ONE)


def test_weights_too_large() -> None:
    needs = tuple(
        msgspec.structs.replace(need, weights=need.weights * 20, weights_int8=need.weights_int8 * 20) for need in drawn().needs
    )
    config = config_of()
    found = drawn_for(config, weights=40 * GIB, needs=needs)
    problem, *ways = misfit(found, config, ONE)
    assert "room for 0.0 MiB (256.0 MiB too little)" in problem or "room for 0.0 MiB (0.25 GiB too little)" in problem
    assert not any("--max-model-len" in way for way in ways)
    assert any("--tensor-parallel-size 2 --topology v6e:1x2: weights of 20.00 GiB" in way for way in ways)
    assert any("--quantization int8: weights of 20.00 GiB, 20.00 GiB less, fits" in way for way in ways)
    assert any("--kv-cache-dtype fp8" in way and way.endswith("is not enough alone") for way in ways)


def test_chips_that_are_there_already_need_no_other_topology() -> None:
    config = config_of()
    _, *ways = misfit(drawn_for(config, max_model_len=1 << 20), config, FOUR)
    assert any(re.search(r"--tensor-parallel-size 2: weights", way) for way in ways)


def test_int8_and_fp8_together() -> None:
    needs = (msgspec.structs.replace(drawn().needs[0], weights=34 * GIB, weights_int8=17 * GIB),)
    config = config_of()
    found = drawn_for(config, weights=34 * GIB, needs=needs, max_model_len=1 << 19)  # 16 GiB of cache; 8 in fp8
    _, *ways = misfit(found, config, ONE)
    assert "would help: --quantization int8 and --kv-cache-dtype fp8 together: fits" in ways
    assert not any("--tensor-parallel-size" in way for way in ways)


def test_what_is_in_8_bits_already_is_not_advised() -> None:
    needs = tuple(msgspec.structs.replace(need, per_token_fp8=need.per_token) for need in drawn().needs)
    config = config_of()
    _, *ways = misfit(drawn_for(config, max_model_len=1 << 20, quantization="int8", needs=needs), config, ONE)
    assert not any("--quantization" in way or "--kv-cache-dtype" in way for way in ways)


def test_a_cache_that_was_given_too_little() -> None:
    config = config_of(kv_cache_memory=GIB // 8)
    problem, way, shorter = misfit(drawn_for(config), config, ONE)
    assert "takes 0.25 GiB of KV cache, and there is room for 128.0 MiB" in problem
    assert way == f"would help: --kv-cache-memory from {GIB // 4} to {29 * GIB}, or none"
    assert shorter == "would help: --max-model-len 4096 or less"


def test_a_cache_that_was_given_too_much() -> None:
    config = config_of(kv_cache_memory=31 * GIB)
    assert misfit(drawn_for(config), config, ONE)[1:] == [f"would help: --kv-cache-memory from {GIB // 4} to {29 * GIB}, or none"]
    # Where the weights leave too little for any, other ways are told as if none had been given.
    problem, *ways = misfit(drawn_for(config, weights=31 * GIB), config, ONE)
    assert "room for 0.0 MiB" in problem and not any("--kv-cache-memory" in way for way in ways)
    assert any("--tensor-parallel-size 2" in way for way in ways) and any("int8" in way and way.endswith("fits") for way in ways)


@pytest.mark.parametrize(("size", "shown"), [(0, "0.0 MiB"), (1 << 20, "1.0 MiB"), (1 << 28, "0.25 GiB"), (3 << 30, "3.00 GiB")])
def test_sizes_for_people(size: int, shown: str) -> None:
    assert gib(size) == shown
