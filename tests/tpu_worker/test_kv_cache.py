"""How many blocks there are, and when there are too few."""

from dataclasses import replace

import jax
import msgspec
import pytest

from protocol.config import EngineConfig
from protocol.errors import CapacityError
from tpu_worker.kv_cache import bytes_per_block, count_blocks, make_caches
from tpu_worker.models.rope import Rope
from tpu_worker.models.spec import LayerSpec, ModelSpec
from tpu_worker.platforms import xla
from tpu_worker.platforms.cpu.memory import HostMemory

LAYER = LayerSpec(num_heads=4, num_kv_heads=2, head_dim=32, intermediate_size=80, rope=Rope(32, 500.0))
SPEC = ModelSpec("x", 96, 64, 256, 1e-5, False, (LAYER, LAYER))
BLOCK = 2 * 2 * 16 * 2 * 32 * 2  # keys and values, layers, positions, heads, features, bytes
CONFIG = EngineConfig(model_path="/m", model_format="gguf", served_model_names=("m",), device="cpu", max_num_seqs=3)
CPU = jax.devices("cpu")[0]


def test_bytes_of_a_block() -> None:
    assert bytes_per_block(SPEC, 16) == BLOCK


def test_layers_may_differ_in_their_heads() -> None:
    wide = replace(LAYER, num_kv_heads=4, head_dim=64)
    spec = replace(SPEC, layers=(LAYER, wide, LAYER))
    assert bytes_per_block(spec, 16) == BLOCK + 2 * 16 * 4 * 64 * 2
    caches = make_caches(spec, xla.ATTENTION, 5, 16)
    assert [caches.take(index).shape for index in range(3)] == [(2, 5, 16, 2, 32), (2, 5, 16, 4, 64), (2, 5, 16, 2, 32)]


def test_memory_as_told() -> None:
    config = msgspec.structs.replace(CONFIG, kv_cache_memory=20 * BLOCK + 5)
    assert count_blocks(config, SPEC, 256, HostMemory(), [CPU]) == 20


def test_no_more_than_the_batch_could_use() -> None:
    assert count_blocks(CONFIG, SPEC, 250, HostMemory(), [CPU]) == 3 * 16


def test_workers_share_what_the_cpu_gives() -> None:
    one = count_blocks(msgspec.structs.replace(CONFIG, max_num_seqs=10**6), SPEC, 256, HostMemory(), [CPU])
    four = count_blocks(msgspec.structs.replace(CONFIG, max_num_seqs=10**6, workers=4), SPEC, 256, HostMemory(), [CPU])
    assert 0.8 < 4 * four / one < 1.2  # free memory moves a little between the two looks


def test_less_than_one_sequence_is_refused() -> None:
    config = msgspec.structs.replace(CONFIG, kv_cache_memory=15 * BLOCK)
    with pytest.raises(CapacityError, match=rf"one sequence of 256 tokens needs {16 * BLOCK}: lower --max-model-len"):
        count_blocks(config, SPEC, 256, HostMemory(), [CPU])
