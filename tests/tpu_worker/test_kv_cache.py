"""How many blocks there are, and when there are too few."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import jax
import msgspec
import psutil
import pytest

from protocol.config import EngineConfig
from protocol.errors import CapacityError
from tests.tpu_worker.tiny_engine import MAX_MODEL_LEN, MAX_NUM_SEQS, tiny_config
from tests.tpu_worker.tiny_models import CONFIG as TINY
from tests.tpu_worker.tiny_models import make_tensors, write_model
from tpu_worker.kv_cache import bytes_per_block, count_blocks, make_caches
from tpu_worker.layer_groups import one_group
from tpu_worker.models.rope import Rope
from tpu_worker.models.spec import LayerSpec, ModelSpec
from tpu_worker.platforms import xla
from tpu_worker.platforms.cache_types import CacheType
from tpu_worker.platforms.cpu import make_xla_platform
from tpu_worker.platforms.cpu.memory import HostMemory
from tpu_worker.platforms.xla.memory import AcceleratorMemory
from tpu_worker.runner import JaxDevice

LAYER = LayerSpec(num_heads=4, num_kv_heads=2, head_dim=32, intermediate_size=80, rope=Rope(32, 500.0))
SPEC = ModelSpec("x", 96, 64, 256, 1e-5, False, (LAYER, LAYER))
GROUPS = one_group(SPEC)
BLOCK = 2 * 2 * 16 * 2 * 32 * 2  # keys and values, layers, positions, heads, features, bytes
CONFIG = EngineConfig(model_path="/m", model_format="gguf", served_model_names=("m",), device="cpu", max_num_seqs=3)
CPU = jax.devices("cpu")[0]


def test_bytes_of_a_block() -> None:
    assert bytes_per_block(SPEC, xla.ATTENTION, 16, GROUPS) == BLOCK


@pytest.mark.parametrize(("kept", "share"), [("float32", 2.0), ("fp8_e4m3", 0.5), ("fp8_e5m2", 0.5), ("int8", 0.5 + 1 / 32)])
def test_bytes_of_a_block_of_other_types(kept: CacheType, share: float) -> None:
    """int8 has two bytes of scale for each head's 32 numbers."""
    attention = xla.make_attention(kept)
    assert bytes_per_block(SPEC, attention, 16, GROUPS) == share * BLOCK
    caches = make_caches(SPEC, attention, 5, 16, GROUPS)
    assert sum(array.nbytes for index in (0, 1) for array in jax.tree.leaves(caches.take(index))) == 5 * share * BLOCK


def test_layers_may_differ_in_their_heads() -> None:
    wide = replace(LAYER, num_kv_heads=4, head_dim=64)
    spec = replace(SPEC, layers=(LAYER, wide, LAYER))
    assert bytes_per_block(spec, xla.ATTENTION, 16, one_group(spec)) == BLOCK + 2 * 16 * 4 * 64 * 2
    caches = make_caches(spec, xla.ATTENTION, 5, 16, one_group(spec))
    assert [caches.take(index).shape for index in range(3)] == [(2, 5, 16, 2, 32), (2, 5, 16, 4, 64), (2, 5, 16, 2, 32)]


def test_memory_as_told() -> None:
    config = msgspec.structs.replace(CONFIG, kv_cache_memory=20 * BLOCK + 5)
    assert count_blocks(config, SPEC, 16, GROUPS, 256, xla.ATTENTION, HostMemory(), [CPU]) == 20


def test_no_more_than_the_batch_could_use() -> None:
    assert count_blocks(CONFIG, SPEC, 16, GROUPS, 250, xla.ATTENTION, HostMemory(), [CPU]) == 3 * 16


def test_workers_share_what_the_cpu_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = psutil.virtual_memory()._replace(available=1 << 30)  # as it is, it moves between two looks
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    one = count_blocks(
        msgspec.structs.replace(CONFIG, max_num_seqs=10**6), SPEC, 16, GROUPS, 256, xla.ATTENTION, HostMemory(), [CPU]
    )
    four = count_blocks(
        msgspec.structs.replace(CONFIG, max_num_seqs=10**6, workers=4), SPEC, 16, GROUPS, 256, xla.ATTENTION, HostMemory(), [CPU]
    )
    assert one == 4 * four == (1 << 29) // BLOCK


def test_less_than_one_sequence_is_refused() -> None:
    config = msgspec.structs.replace(CONFIG, kv_cache_memory=15 * BLOCK)
    with pytest.raises(CapacityError, match=rf"one sequence of 256 tokens needs {16 * BLOCK}: lower --max-model-len"):
        count_blocks(config, SPEC, 16, GROUPS, 256, xla.ATTENTION, HostMemory(), [CPU])


def _live_bytes() -> int:
    """Of arrays that somebody still uses."""
    gc.collect()  # devices of tests before are held by their own cycles
    return sum(array.nbytes for array in jax.live_arrays())


@dataclass
class Accelerator:
    """The figures of a chip: so much memory, of which the arrays of this process take theirs."""

    bytes_limit: int
    before: int = field(default_factory=_live_bytes)
    device_kind: str = "chip"

    def memory_stats(self) -> dict[str, int]:
        return {"bytes_limit": self.bytes_limit, "bytes_in_use": sum(array.nbytes for array in jax.live_arrays()) - self.before}


class Figures(AcceleratorMemory):
    """An accelerator's memory, with the figures of chips that are not there."""

    def __init__(self, *chips: Accelerator) -> None:
        self._chips = chips

    def for_kv_cache(self, devices: Sequence[jax.Device], workers: int, pending: int, utilization: float | None = None) -> int:
        return super().for_kv_cache(cast(Sequence[jax.Device], self._chips), workers, pending, utilization)

    def left(self, devices: Sequence[jax.Device], pending: int) -> int | None:
        return super().left(cast(Sequence[jax.Device], self._chips), pending)


def test_the_fullest_chip_decides() -> None:
    memory = Figures(Accelerator(10**9), Accelerator(10**8))
    assert memory.for_kv_cache([CPU], 1, 0) == pytest.approx(0.85 * 10**8, rel=0.01)
    assert memory.for_kv_cache([CPU], 1, 6 * 10**7) == pytest.approx(0.85 * 4 * 10**7, rel=0.01)
    assert memory.for_kv_cache([CPU], 1, 10**9) == 0


def test_the_operator_says_how_full_a_chip_may_be() -> None:
    taken = jax.numpy.zeros(10**6, jax.numpy.uint8)
    memory = Figures(Accelerator(10**8))
    in_use = memory._chips[0].memory_stats()["bytes_in_use"]
    assert memory.for_kv_cache([CPU], 1, 10**7, 0.9) == pytest.approx(9 * 10**7 - 10**7 - in_use, abs=1)
    assert memory.for_kv_cache([CPU], 1, 10**7, 0.05) == 0
    del taken


def test_on_the_cpu_the_share_is_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpu_worker.platforms.cpu.memory.memory_limit", lambda: 100 << 30)
    monkeypatch.setattr("tpu_worker.platforms.cpu.memory._available", lambda: 70 << 30)
    memory = HostMemory()
    assert memory.for_kv_cache([CPU], 1, 0) == 2 << 30  # a guest
    assert memory.for_kv_cache([CPU], 1, 10 << 30, 0.9) == pytest.approx(50 << 30, abs=2)
    assert memory.for_kv_cache([CPU], 2, 10 << 30, 0.9) == pytest.approx(20 << 30, abs=2)
    assert memory.for_kv_cache([CPU], 1, 0, 0.3) == 0


def test_a_chip_that_keeps_its_memory_to_itself() -> None:
    chip = Accelerator(0)
    chip.memory_stats = dict  # type: ignore[method-assign]
    with pytest.raises(CapacityError, match="chip does not say how much memory it has: set --kv-cache-memory"):
        Figures(chip).for_kv_cache([CPU], 1, 0)


def test_the_cache_leaves_room_for_weights_that_are_not_there_yet(tmp_path: Path) -> None:
    """It is sized when the first layer is on the chip: together with the others, it fits all the same."""
    model = {**TINY, "num_hidden_layers": 4, "intermediate_size": 512}
    path = write_model(tmp_path, model, make_tensors(model))
    config = tiny_config(path, max_num_batched_tokens=16)
    chip = Accelerator(1_500_000)
    device = JaxDevice(config, replace(make_xla_platform(), memory=Figures(chip)))
    gc.collect()
    chip.before = sum(array.nbytes for array in jax.live_arrays())
    capacity = device.load(lambda *_: None)
    device.close()
    cache = 4 * 2 * 2 * 32 * 16 * 2 * capacity.num_blocks
    assert capacity.num_blocks < MAX_NUM_SEQS * MAX_MODEL_LEN // 16, (
        "there is room for all that the batch could use: the test shows nothing"
    )
    assert chip.memory_stats()["bytes_in_use"] <= chip.bytes_limit
    assert cache > 0.15 * chip.bytes_limit


def test_more_than_there_is_is_refused_before_it_is_taken() -> None:
    config = msgspec.structs.replace(CONFIG, kv_cache_memory=1 << 50, max_num_seqs=10**9)
    with pytest.raises(CapacityError, match=r"--kv-cache-memory 1125899906842624: \d+ bytes would be used, .* leave \d+: lower it"):
        count_blocks(config, SPEC, 16, GROUPS, 256, xla.ATTENTION, HostMemory(), [CPU])
    chip = Figures(Accelerator(20 * BLOCK))
    config = msgspec.structs.replace(CONFIG, kv_cache_memory=18 * BLOCK)
    assert count_blocks(config, SPEC, 16, GROUPS, 256, xla.ATTENTION, chip, [CPU], pending=2 * BLOCK) == 18
    with pytest.raises(CapacityError, match=rf"{18 * BLOCK} bytes would be used, .* leave {17 * BLOCK}: lower"):
        count_blocks(config, SPEC, 16, GROUPS, 256, xla.ATTENTION, chip, [CPU], pending=3 * BLOCK)
