"""Memory that the host cannot have is refused before anything starts."""

from pathlib import Path

import pytest

from frontend.launcher.memory import check_memory
from protocol.config import Device, EngineConfig
from protocol.errors import CapacityError
from protocol.host_memory import memory_limit


def config(device: Device, memory: int | None, workers: int = 1) -> EngineConfig:
    return EngineConfig(
        model_path="/m", model_format="gguf", served_model_names=("m",), device=device, kv_cache_memory=memory, workers=workers
    )


@pytest.mark.parametrize("device", ["cpu", "sim"])
def test_a_cache_in_the_hosts_memory_fits_into_it(device: Device) -> None:
    check_memory(config(device, 100), limit=100)
    check_memory(config(device, None), limit=100)
    with pytest.raises(CapacityError, match="--kv-cache-memory 101: this host has 100 bytes of memory in all"):
        check_memory(config(device, 101), limit=100)
    with pytest.raises(CapacityError, match="--kv-cache-memory 51 for each of 2 workers: this host has 100 bytes"):
        check_memory(config(device, 51, workers=2), limit=100)


def test_a_cache_elsewhere_is_no_matter_of_the_host() -> None:
    check_memory(config("cuda", 101), limit=100)


def test_the_limit_is_that_of_the_closest_control_group(tmp_path: Path) -> None:
    physical = memory_limit(tmp_path)
    assert physical > 1 << 24
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_limit(tmp_path) == physical
    for version1 in (tmp_path / "memory" / "memory.limit_in_bytes", tmp_path / "memory.max"):
        version1.parent.mkdir(exist_ok=True)
        version1.write_text("12345678\n")
    assert memory_limit(tmp_path) == 12345678
