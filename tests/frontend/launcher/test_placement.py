"""The device of all workers, and the processors of each."""

from hypothesis import given
from hypothesis import strategies as st

from frontend.launcher.placement import look_at_host, place_workers, resolve_device, split_processors
from protocol.config import Device, EngineConfig


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
