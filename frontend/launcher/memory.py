"""Whether the memory that was asked for can be there."""

from protocol.config import EngineConfig
from protocol.errors import CapacityError
from protocol.host_memory import memory_limit


def check_memory(config: EngineConfig, limit: int | None = None) -> None:
    """Raises CapacityError when the KV caches that were asked for would not fit into the host's memory (`limit` bytes).

    The weights need memory too, and not all of it is free: that is for the worker to say, which sees both.
    """
    if config.device not in ("cpu", "sim") or config.kv_cache_memory is None:
        return
    limit = memory_limit() if limit is None else limit
    wanted = config.kv_cache_memory * config.workers
    if wanted > limit:
        of = f" for each of {config.workers} workers" if config.workers > 1 else ""
        raise CapacityError(
            f"--kv-cache-memory {config.kv_cache_memory}{of}: this host has {limit} bytes of memory in all, and the weights need "
            "some of it: lower it, or leave it out"
        )
