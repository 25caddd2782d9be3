"""The device of all workers, and the processors of each."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from frontend.launcher.placement import look_at_host, place_workers, resolve_device, split_processors
from protocol.config import Device, EngineConfig
from protocol.errors import ConfigError
from tests.frontend.launcher.hosts import FakeHost


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


def test_auto_resolves_and_anything_else_stays() -> None:
    assert resolve_device("auto", look_at_host("auto", {}))[0] in ("cpu", "tpu", "cuda")
    assert resolve_device("sim", look_at_host("sim", {})) == ("sim", "")


_SECOND = {"hosts": ("a", "b"), "host_rank": 1}


def test_a_host_of_several_gets_its_share_and_talks_with_the_others() -> None:
    (placed,) = place_workers(replace(config("cpu", 1, 4), **_SECOND), {"XLA_FLAGS": "--x", "no_grpc_proxy": "c"})
    assert placed.cpus
    assert placed.environ == {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--x --xla_force_host_platform_device_count=2",
        "no_grpc_proxy": "c,a,b",
    }


def test_accelerators_of_a_host_of_several(tmp_path: Path) -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "2,3"}
    gpus = look_at_host("cuda", environ, FakeHost(tmp_path / "gpus").gpus(4).places)
    (placed,) = place_workers(replace(config("cuda", 1, 4), **_SECOND), environ, gpus)
    assert placed.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
    for kind, devices in (("v6e", 4), ("v7x", 8)):
        host = look_at_host("tpu", {}, FakeHost(tmp_path / kind).tpu(kind, 4).places)
        (placed,) = place_workers(replace(config("tpu", 1, 2 * devices), **_SECOND), {}, host)
        assert (placed.environ["TPU_WORKER_HOSTNAMES"], placed.environ["TPU_WORKER_ID"]) == ("a,b", "1")
        assert "TPU_VISIBLE_CHIPS" not in placed.environ and "TPU_PROCESS_BOUNDS" not in placed.environ
        assert placed.chips == ("0", "1", "2", "3")
        with pytest.raises(
            ConfigError, match=rf"--tensor-parallel-size 4 over 2 hosts is 2 of each, here are {devices}.* so {2 * devices}"
        ):
            place_workers(replace(config("tpu", 1, 4), **_SECOND), {}, host)
