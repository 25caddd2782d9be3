"""The accelerator chips of one worker."""

import jax

from protocol.config import EngineConfig
from protocol.errors import ConfigError, DeviceError

_PLATFORMS = {"cpu": "cpu", "tpu": "tpu", "cuda": "cuda"}


def open_device(config: EngineConfig) -> jax.Device:
    """The chip that this worker computes on, made JAX's default. Raises DeviceError when it is not there.

    A worker sees its own chips only (its environment says so before JAX starts), so the first is its own.
    """
    if config.tensor_parallel_size != 1:
        raise ConfigError(f"--tensor-parallel-size {config.tensor_parallel_size}: only 1 is supported so far")
    if config.device in _PLATFORMS:
        jax.config.update("jax_platforms", _PLATFORMS[config.device])
    try:
        device: jax.Device = jax.devices()[0]
    except RuntimeError as error:
        raise DeviceError(f"--device {config.device}: {error}") from error
    jax.config.update("jax_default_device", device)
    return device


def describe(device: jax.Device, kernels: str) -> str:
    """For people: `cpu (C++ kernels)`, `TPU v6e (XLA kernels)`."""
    return f"{device.device_kind} ({kernels} kernels)"
