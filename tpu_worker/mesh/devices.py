"""The accelerator chips of one worker."""

from collections.abc import Sequence

import jax

from protocol.config import EngineConfig
from protocol.errors import DeviceError

_PLATFORMS = {"cpu": "cpu", "tpu": "tpu", "cuda": "cuda"}


def open_devices(config: EngineConfig) -> Sequence[jax.Device]:
    """The chips that this worker computes on; the first is made JAX's default. Raises DeviceError when they are not there.

    A worker sees its own chips only (its environment says so before JAX starts), so the first ones are its own.
    """
    if config.device in _PLATFORMS:
        jax.config.update("jax_platforms", _PLATFORMS[config.device])
    try:
        devices: list[jax.Device] = jax.devices()
    except RuntimeError as error:
        raise DeviceError(f"--device {config.device}: {error}") from error
    wanted = config.tensor_parallel_size
    if len(devices) < wanted:
        raise DeviceError(f"--tensor-parallel-size {wanted}: of {devices[0].platform} devices this worker sees {len(devices)}")
    jax.config.update("jax_default_device", devices[0])
    return devices[:wanted]


def describe(devices: Sequence[jax.Device], kernels: str) -> str:
    """For people: `cpu (C++ kernels)`, `TPU v6e x4 (XLA kernels)`."""
    several = f" x{len(devices)}" if len(devices) > 1 else ""
    return f"{devices[0].device_kind}{several} ({kernels} kernels)"
