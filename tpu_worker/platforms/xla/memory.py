"""The memory of an accelerator, as its driver tells it."""

from collections.abc import Sequence

import jax

from protocol.errors import CapacityError

_SHARE = 0.85  # of what is left free; the rest is for activations and fragments


def for_kv_cache(left: int, limit: int, utilization: float | None) -> int:
    """Bytes of the `left` ones that the KV cache may have. limit: of the device. utilization: as `platform.Memory` has it."""
    return int(left * _SHARE) if utilization is None else max(0, left - int(limit * (1.0 - utilization)))


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
        return for_kv_cache(left, max(device.memory_stats()["bytes_limit"] for device in devices), utilization)

    def left(self, devices: Sequence[jax.Device], pending: int) -> int | None:
        """As the protocol says, of the fullest of the devices."""
        free: list[int] = []
        for device in devices:
            stats = device.memory_stats()
            if not stats or "bytes_limit" not in stats:
                return None
            free.append(stats["bytes_limit"] - stats["bytes_in_use"])
        return max(0, min(free) - pending)
