"""When the GPU's platform is taken."""

from tpu_worker.kv_cache import bytes_per_block, make_caches
from tpu_worker.layer_groups import one_group
from tpu_worker.models.rope import Rope
from tpu_worker.models.spec import LayerSpec, ModelSpec
from tpu_worker.platforms.choose import choose_platform
from tpu_worker.platforms.gpu import make_attention


def test_floats_that_the_kernels_do_not_know_go_without_them() -> None:
    assert choose_platform("gpu", "auto", (), None, {64}).name == "Triton"
    assert choose_platform("gpu", "auto", (), None, {64}, num_shards=4).name == "Triton"
    plain = choose_platform("gpu", "auto", (), None, {64}, dtype="float32")
    assert plain.name == "XLA" and plain.attention.bytes_per_value == 4


def test_memory_counts_the_cache_as_it_is() -> None:
    """Heads are filled up in registers only."""
    layer = LayerSpec(num_heads=6, num_kv_heads=3, head_dim=80, intermediate_size=80, rope=Rope(16, 500.0))
    spec, attention = ModelSpec("x", 96, 64, 256, 1e-5, False, (layer, layer)), make_attention()
    groups = one_group(spec)
    caches = make_caches(spec, attention, 5, 32, groups)
    assert bytes_per_block(spec, attention, 32, groups) * 5 == sum(caches.take(index).nbytes for index in (0, 1))
    assert caches.take(0).nbytes == 5 * 32 * 3 * 2 * 80 * 2
