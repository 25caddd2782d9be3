"""Programs that become more while steps run, and what happens when one cannot be compiled."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest

from protocol.params import EngineParams
from tests.tpu_worker.device_driver import Driver
from tests.tpu_worker.tiny_engine import tiny_config
from tests.tpu_worker.tiny_models import CONFIG, make_tensors, write_model
from tpu_worker.buckets import Bucket
from tpu_worker.platforms.cpu import make_xla_platform
from tpu_worker.platforms.platform import Platform
from tpu_worker.runner import JaxDevice

TENSORS = make_tensors(CONFIG)
PLATFORM = make_xla_platform()


@contextmanager
def loaded(path: Path, platform: Platform, phases: list[tuple[str, int, int]]) -> Iterator[tuple[JaxDevice, Driver]]:
    device = JaxDevice(tiny_config(write_model(path, CONFIG, TENSORS)), platform)
    capacity = device.load(lambda *phase: phases.append(phase))
    try:
        yield device, Driver(device, capacity.num_blocks, capacity.block_size)
    finally:
        device.close()


def with_products(**changes: Any) -> Platform:
    return replace(PLATFORM, products=replace(PLATFORM.products, **changes))


def test_where_rows_are_not_stable_everything_is_compiled_first(tmp_path: Path) -> None:
    """Else the bits of a step would depend on how far the compiler has come."""
    phases: list[tuple[str, int, int]] = []
    with loaded(tmp_path, with_products(rows_are_stable=lambda *_: False), phases) as (device, driver):
        buckets = {(4, 4), (128, 8), (8, 8), (128, 4), (32, 4)}
        assert phases[-1] == ("compiling", len(buckets) + 2, len(buckets) + 2)  # and samplers for 4 and for 8 rows
        chosen = {
            (bucket.tokens, bucket.rows)
            for tokens, rows in ((1, 1), (5, 5), (32, 2), (120, 3), (128, 8))
            for sampler in (False, True)
            for bucket in [device.programs.choose(tokens, rows, sampler=sampler)]
        }
        assert chosen == buckets
        assert len(driver.run([[1, 2, 3]], EngineParams(4))[0].tokens) == 4


def test_a_program_that_cannot_be_compiled_is_told_and_larger_ones_stand_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Steps of 128 tokens in 4 rows are refused, by the product while it is traced, as the compiler might."""

    def refuse(x: jax.Array, weight: Any, **options: Any) -> jax.Array:
        if x.shape[0] == 128 and threading.current_thread().name == "compiler":
            raise ValueError("no registers left")
        return PLATFORM.products.linear(x, weight, **options)

    phases: list[tuple[str, int, int]] = []
    platform = with_products(linear=refuse, rows_are_stable=lambda *_: True)
    with caplog.at_level(logging.ERROR), loaded(tmp_path, platform, phases) as (device, driver):
        assert phases[-1] == ("compiling", 3, 3)
        device.programs.wait()
        assert [failure.split(":")[0] for failure in device.programs.failed] == ["Bucket(tokens=128, rows=4)"]
        assert "up to 128 tokens in 4 rows cannot be compiled" in caplog.text and "no registers left" in caplog.text
        assert device.programs.choose(100, 1, sampler=False) == Bucket(128, 8)
        (request,) = driver.run([list(range(1, 61))], EngineParams(3))
        assert driver.failed_programs == 1  # told with the first step, and never again
        assert len(request.tokens) == 3


def test_close_does_not_wait_for_the_compiler(tmp_path: Path) -> None:
    """A program is being compiled, for as long as this test likes: it is finished, and no other is begun."""
    begun, may_end = threading.Event(), threading.Event()

    def linger(x: jax.Array, weight: Any, **options: Any) -> jax.Array:
        if threading.current_thread().name == "compiler":
            begun.set()
            assert may_end.wait(60)
        return PLATFORM.products.linear(x, weight, **options)

    with loaded(tmp_path, with_products(linear=linger, rows_are_stable=lambda *_: True), []) as (device, _):
        assert begun.wait(60)
        device.close()
    assert device.programs.choose(8, 4, sampler=False).tokens == 128
    may_end.set()
    device.programs.wait()
    ready = {device.programs.choose(tokens, rows, sampler=False) for tokens, rows in ((1, 1), (8, 8), (32, 4), (128, 4), (128, 8))}
    assert len(ready) == 3  # the two that came first, and the one that was under way
    assert device.programs.failed == []
