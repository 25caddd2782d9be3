"""Which blocks the TPU's platform takes, and what they cost."""

import functools

import jax
import pytest

from protocol.config import Quantization
from protocol.errors import ConfigError
from tpu_worker.kv_cache import bytes_per_block, make_caches
from tpu_worker.layer_groups import one_group
from tpu_worker.models.rope import Rope
from tpu_worker.models.spec import LayerSpec, ModelSpec
from tpu_worker.platforms.cache_types import CacheType
from tpu_worker.platforms.choose import choose_platform
from tpu_worker.platforms.tpu import make_attention, preferred_block_size


@pytest.mark.parametrize(
    ("head_dim", "num_kv_heads", "size"),
    [
        (64, 8, 64),  # Llama 3.2 1B
        (128, 8, 64),  # Llama 3.1 8B …
        (128, 2, 64),  # … and its part on one of four chips
        (128, 1, 128),
        (64, 2, 128),
        (64, 1, 256),
        (16, 1, 256),
    ],
)
def test_blocks_are_as_small_as_can_be_moved_fast(head_dim: int, num_kv_heads: int, size: int) -> None:
    assert preferred_block_size({head_dim}, num_kv_heads) == size
    assert choose_platform("tpu", "auto", (), None, {head_dim, 256}, num_kv_heads=num_kv_heads).block_size == size


@pytest.mark.parametrize("size", [8, 512])
def test_blocks_that_the_kernels_cannot_work_with_are_refused(size: int) -> None:
    with pytest.raises(ConfigError, match=rf"--block-size {size}: on TPUs it is from 16 to 256"):
        choose_platform("tpu", "auto", (), size, {64})
    choose_platform("tpu", "auto", (), 16, {64})


@pytest.mark.parametrize(
    ("kept", "smallest", "size"), [("float32", 16, 64), ("bfloat16", 16, 64), ("fp8_e4m3", 32, 64), ("int8", 32, 128)]
)
def test_small_numbers_want_larger_blocks(kept: CacheType, smallest: int, size: int) -> None:
    """Tiles of 8 bits have 32 rows; scales of integers fill whole registers."""
    asked = "auto" if kept == "float32" else kept
    of_type = functools.partial(choose_platform, dtype="float32" if kept == "float32" else "bfloat16", kv_cache_dtype=asked)
    assert of_type("tpu", "auto", (), None, {64}, num_kv_heads=8).block_size == size
    of_type("tpu", "auto", (), smallest, {64})
    with pytest.raises(ConfigError, match=rf"--block-size {smallest // 2}: on TPUs it is from {smallest} to 256"):
        of_type("tpu", "auto", (), smallest // 2, {64})


@pytest.mark.parametrize(("head_dim", "taken"), [(16, 64), (64, 64), (80, 128), (96, 128), (128, 128), (256, 256)])
@pytest.mark.parametrize(("kept", "size"), [("bfloat16", 2), ("fp8_e4m3", 1), ("fp8_e5m2", 1), ("int8", 1), ("float32", 4)])
def test_memory_counts_what_pads_a_head(head_dim: int, taken: int, kept: CacheType, size: int) -> None:
    layer = LayerSpec(num_heads=6, num_kv_heads=3, head_dim=head_dim, intermediate_size=80, rope=Rope(16, 500.0))
    spec, attention = ModelSpec("x", 96, 64, 256, 1e-5, False, (layer, layer)), make_attention(kept)
    groups = one_group(spec)
    caches = make_caches(spec, attention, 5, 32, groups)
    in_all = sum(array.nbytes for index in (0, 1) for array in jax.tree.leaves(caches.take(index)))
    assert bytes_per_block(spec, attention, 32, groups) * 5 == in_all
    scales = 5 * 3 * 128 * 4 if kept == "int8" else 0  # of a block and head as many as a register has
    assert in_all == 2 * (5 * 32 * 3 * 2 * taken * size + scales)


def test_floats_of_32_bits_are_kept_so() -> None:
    assert choose_platform("tpu", "auto", (), None, {64}, dtype="bfloat16").attention.kept == "bfloat16"
    exact = choose_platform("tpu", "auto", (), None, {64}, dtype="float32")
    assert (exact.name, exact.attention.kept, exact.products.dtype) == ("Pallas", "float32", "float32")
    assert not exact.products.keeps_scaled  # weights of eight bits are multiplied as bfloat16
    narrow = choose_platform("tpu", "auto", (), None, {64}, dtype="float32", kv_cache_dtype="bfloat16")
    assert (narrow.attention.kept, narrow.products.dtype) == ("bfloat16", "float32")


@pytest.mark.parametrize(
    ("quantization", "narrows_to", "keeps"),
    [("none", None, ()), ("auto", None, ("int8", "fp8")), ("int8", "int8", ("int8", "fp8")), ("fp8", "fp8", ("int8", "fp8"))],
)
def test_which_weights_are_kept_in_eight_bits(quantization: Quantization, narrows_to: str | None, keeps: tuple[str, ...]) -> None:
    for name in ("tpu", "cuda"):
        products = choose_platform(name, quantization, (), None, {64}).products
        assert (products.narrows_to, products.keeps_scaled) == (narrows_to, keeps)
