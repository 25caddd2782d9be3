"""The memory of an accelerator, as its driver tells it."""

from collections.abc import Sequence

import jax

from protocol.errors import CapacityError

_SHARE = 0.85  # of what is left free; the rest is for activations and fragments


class AcceleratorMemory:
    """Implements `platform.Memory`."""

    def before_loading(self) -> None:
        """Nothing: it is the driver's."""

    def after_loading(self) -> None:
        """Nothing."""

    def for_kv_cache(self, devices: Sequence[jax.Device], workers: int, pending: int) -> int:
        """As the protocol says: a share of what is free on the fullest of the devices."""
        return min(_free(device, pending) for device in devices)


def _free(device: jax.Device, pending: int) -> int:
    stats = device.memory_stats()
    if not stats or "bytes_limit" not in stats:
        raise CapacityError(f"{device.device_kind} does not say how much memory it has: set --kv-cache-memory")
    return max(0, int((stats["bytes_limit"] - stats["bytes_in_use"] - pending) * _SHARE))
