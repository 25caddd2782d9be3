"""How many blocks there are, and when there are too few."""

import jax
import msgspec
import pytest

from protocol.config import EngineConfig
from protocol.errors import CapacityError
from tpu_worker.kv_cache import bytes_per_block, count_blocks
from tpu_worker.models.spec import ModelSpec
from tpu_worker.platforms.cpu.memory import HostMemory

SPEC = ModelSpec("x", 96, 64, 80, 2, 4, 2, 32, 256, 1e-5, 500.0)
BLOCK = 2 * 2 * 16 * 2 * 32 * 2  # keys and values, layers, positions, heads, features, bytes
CONFIG = EngineConfig(model_path="/m", model_format="gguf", served_model_names=("m",), device="cpu", max_num_seqs=3)
CPU = jax.devices("cpu")[0]


def test_bytes_of_a_block() -> None:
    assert bytes_per_block(SPEC, 16) == BLOCK


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
