"""Which blocks the TPU's platform takes, and what they cost."""

import pytest

from protocol.errors import ConfigError
from tpu_worker.kv_cache import bytes_per_block, make_caches
from tpu_worker.layer_groups import one_group
from tpu_worker.models.rope import Rope
from tpu_worker.models.spec import LayerSpec, ModelSpec
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


@pytest.mark.parametrize(("head_dim", "taken"), [(16, 64), (64, 64), (80, 128), (96, 128), (128, 128), (256, 256)])
def test_memory_counts_what_pads_a_head(head_dim: int, taken: int) -> None:
    layer = LayerSpec(num_heads=6, num_kv_heads=3, head_dim=head_dim, intermediate_size=80, rope=Rope(16, 500.0))
    spec, attention = ModelSpec("x", 96, 64, 256, 1e-5, False, (layer, layer)), make_attention()
    groups = one_group(spec)
    caches = make_caches(spec, attention, 5, 32, groups)
    assert bytes_per_block(spec, attention, 32, groups) * 5 == sum(caches.take(index).nbytes for index in (0, 1))
    assert caches.take(0).nbytes == 5 * 32 * 3 * 2 * taken * 2


def test_floats_that_the_kernels_do_not_know_go_without_them() -> None:
    assert choose_platform("tpu", "auto", (), None, {64}, dtype="bfloat16").name == "Pallas"
    plain = choose_platform("tpu", "auto", (), None, {64}, dtype="float32")
    assert plain.name == "XLA" and plain.attention.bytes_per_value == 4
