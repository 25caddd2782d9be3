"""The accelerator chips of one worker."""

from collections.abc import Sequence

import jax

from protocol.config import EngineConfig
from protocol.errors import DeviceError

_PLATFORMS = {"cpu": "cpu", "tpu": "tpu", "cuda": "cuda"}


def open_devices(config: EngineConfig) -> Sequence[jax.Device]:
    """The chips that this worker computes on, of all its hosts; the first of this host is made JAX's default.

    Raises DeviceError when they are not there.

    A worker sees its own chips only (its environment says so before JAX starts), so the first ones are its own. Over several hosts
    it takes all that they have: one that was left out would leave a host without a part.
    """
    if config.device in _PLATFORMS:
        jax.config.update("jax_platforms", _PLATFORMS[config.device])
    try:
        devices: list[jax.Device] = jax.devices()
    except RuntimeError as error:
        raise DeviceError(f"--device {config.device}: {error}") from error
    wanted = config.tensor_parallel_size
    if len(devices) < wanted or (config.hosts and len(devices) > wanted):
        where = f" on its {len(config.hosts)} hosts together, and takes all" if config.hosts else ""
        raise DeviceError(
            f"--tensor-parallel-size {wanted}: of {devices[0].platform} devices this worker sees {len(devices)}{where}"
        )
    chosen = devices[:wanted]
    jax.config.update("jax_default_device", of_this_host(chosen)[0])
    return chosen


def of_this_host(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """Those that this process drives; the others belong to processes on other hosts."""
    return [device for device in devices if device.process_index == jax.process_index()]


def describe(devices: Sequence[jax.Device], kernels: str) -> str:
    """For people: `cpu (C++ kernels)`, `TPU v6e x8 on 2 hosts (Pallas kernels)`."""
    several = f" x{len(devices)}" if len(devices) > 1 else ""
    hosts = len({device.process_index for device in devices})
    return f"{devices[0].device_kind}{several}{f' on {hosts} hosts' if hosts > 1 else ''} ({kernels} kernels)"
