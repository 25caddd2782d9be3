"""Processors and chips of each worker."""

import importlib.util
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.launcher import placement
from frontend.launcher.placement import place_workers, resolve_device, split_processors
from protocol.config import Device, EngineConfig
from protocol.errors import ConfigError, DeviceError


def config(device: Device, workers: int, tensor_parallel_size: int = 1) -> EngineConfig:
    return EngineConfig(
        model_path="/m",
        model_format="gguf",
        served_model_names=("m",),
        device=device,
        workers=workers,
        tensor_parallel_size=tensor_parallel_size,
    )


@given(st.lists(st.integers(0, 255), min_size=1, max_size=64, unique=True), st.integers(1, 80))
def test_processors_are_all_used_and_evenly(processors: list[int], workers: int) -> None:
    shares = split_processors(processors, workers)
    assert len(shares) == workers
    assert {cpu for share in shares for cpu in share} == set(processors) if workers <= len(processors) else all(shares)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    if workers <= len(processors):
        assert [cpu for share in shares for cpu in share] == processors


def test_two_processors() -> None:
    assert split_processors([0, 1], 1) == [(0, 1)]
    assert split_processors([0, 1], 2) == [(0,), (1,)]
    assert split_processors([0, 1], 3) == [(0,), (1,), (0,)]


def test_cpu_workers_see_no_accelerator() -> None:
    for placed in place_workers(config("cpu", 2), {}):
        assert placed.environ == {"JAX_PLATFORMS": "cpu"}
        assert placed.cpus


def test_processors_are_as_many_devices_as_a_worker_wants() -> None:
    for placed in place_workers(config("cpu", 2, 4), {"XLA_FLAGS": "--xla_cpu_max_isa=AVX2"}):
        assert placed.environ["XLA_FLAGS"] == "--xla_cpu_max_isa=AVX2 --xla_force_host_platform_device_count=4"
    assert place_workers(config("cpu", 1, 2), {})[0].environ["XLA_FLAGS"] == "--xla_force_host_platform_device_count=2"


def test_gpus_are_taken_from_those_that_are_visible() -> None:
    visible = {"CUDA_VISIBLE_DEVICES": "3,GPU-abc,5,7"}
    shares = [placed.environ["CUDA_VISIBLE_DEVICES"] for placed in place_workers(config("cuda", 2, 2), visible)]
    assert shares == ["3,GPU-abc", "5,7"]
    with pytest.raises(ConfigError, match="needs 6 GPUs, CUDA_VISIBLE_DEVICES=3,GPU-abc,5,7 names 4"):
        place_workers(config("cuda", 3, 2), visible)


def test_a_gpu_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "DEVICES", tmp_path)
    with pytest.raises(DeviceError, match="--device cuda: no GPU is here, there is no /dev/nvidia0"):
        place_workers(config("cuda", 1), {})
    with pytest.raises(DeviceError, match="no GPU is here, CUDA_VISIBLE_DEVICES= names none"):
        place_workers(config("cuda", 1), {"CUDA_VISIBLE_DEVICES": ""})


@pytest.mark.parametrize(
    ("device", "package"), [("tpu", r"libtpu .*: add twodeep\[tpu\]"), ("cuda", r"JAX's CUDA plugin .*cuda\]")]
)
def test_an_accelerator_whose_plugin_is_not_installed(device: Device, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", {}.get)
    with pytest.raises(DeviceError, match=rf"--device {device}: {package}"):
        resolve_device(device)


def test_tpu_chips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for chip in range(8):
        (tmp_path / f"accel{chip}").touch()
    monkeypatch.setattr(placement, "DEVICES", tmp_path)
    first, second = (placed.environ for placed in place_workers(config("tpu", 2, 4), {}))
    assert (first["TPU_VISIBLE_CHIPS"], second["TPU_VISIBLE_CHIPS"]) == ("0,1,2,3", "4,5,6,7")
    assert first["TPU_CHIPS_PER_PROCESS_BOUNDS"] == "2,2,1"
    assert place_workers(config("tpu", 1, 8), {})[0].environ == {"JAX_PLATFORMS": "tpu,cpu"}
    with pytest.raises(ConfigError, match="needs 12 TPU chips, here are 8"):
        place_workers(config("tpu", 3, 4), {})
    with pytest.raises(ConfigError, match="--tensor-parallel-size 3: a process can own 1, 2, 4 or 8"):
        place_workers(config("tpu", 2, 3), {})


def test_auto_resolves_and_anything_else_stays() -> None:
    assert resolve_device("auto")[0] in ("cpu", "tpu", "cuda")
    assert resolve_device("sim") == ("sim", "")
