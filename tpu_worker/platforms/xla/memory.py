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

    def for_kv_cache(self, devices: Sequence[jax.Device], workers: int, pending: int, utilization: float | None = None) -> int:
        """As the protocol says: of what is free on the fullest of the devices."""
        left = self.left(devices, pending)
        if left is None:
            raise CapacityError(f"{devices[0].device_kind} does not say how much memory it has: set --kv-cache-memory")
        if utilization is None:
            return int(left * _SHARE)
        spared = max(int(device.memory_stats()["bytes_limit"] * (1.0 - utilization)) for device in devices)
        return max(0, left - spared)

    def left(self, devices: Sequence[jax.Device], pending: int) -> int | None:
        """As the protocol says, of the fullest of the devices."""
        free: list[int] = []
        for device in devices:
            stats = device.memory_stats()
            if not stats or "bytes_limit" not in stats:
                return None
            free.append(stats["bytes_limit"] - stats["bytes_in_use"])
        return max(0, min(free) - pending)
