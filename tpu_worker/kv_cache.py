"""How many blocks the KV cache holds."""

import jax
import psutil

from protocol.config import EngineConfig
from protocol.errors import CapacityError
from tpu_worker.models.spec import ModelSpec

_CPU_SHARE = 0.5  # of the free memory, shared by the workers; the rest stays for the programs beside the engine
_CPU_LIMIT = 2 << 30  # bytes over all workers: more than two cores fill, little enough to be a guest on a laptop
_ACCELERATOR_SHARE = 0.85  # of what the weights left free; the rest is for activations and the compiler's scratch
_BYTES_PER_VALUE = 2  # bfloat16


def bytes_per_block(spec: ModelSpec, block_size: int) -> int:
    """Keys and values of one block in all layers."""
    return 2 * spec.num_layers * block_size * spec.num_kv_heads * spec.head_dim * _BYTES_PER_VALUE


def count_blocks(config: EngineConfig, spec: ModelSpec, max_model_len: int, device: jax.Device) -> int:
    """Blocks for this worker. Raises CapacityError when not even one sequence of max_model_len tokens fits.

    Never more than the largest batch could use.
    """
    block = bytes_per_block(spec, config.block_size)
    per_sequence = -(-max_model_len // config.block_size)
    memory = config.kv_cache_memory if config.kv_cache_memory is not None else _free_memory(config, device)
    num_blocks = min(memory // block, per_sequence * config.max_num_seqs)
    if num_blocks < per_sequence:
        where = "--kv-cache-memory" if config.kv_cache_memory is not None else "the free memory"
        raise CapacityError(
            f"{where} leaves {memory} bytes for the KV cache, one sequence of {max_model_len} tokens needs {per_sequence * block}: "
            "lower --max-model-len or give it more"
        )
    return num_blocks


def _free_memory(config: EngineConfig, device: jax.Device) -> int:
    if device.platform == "cpu":
        return int(min(psutil.virtual_memory().available * _CPU_SHARE, _CPU_LIMIT)) // config.workers
    stats = device.memory_stats()
    if not stats or "bytes_limit" not in stats:
        raise CapacityError(f"{device.device_kind} does not say how much memory it has: set --kv-cache-memory")
    return int((stats["bytes_limit"] - stats["bytes_in_use"]) * _ACCELERATOR_SHARE)
