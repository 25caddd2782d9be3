"""How many blocks the KV cache holds, beside all else that needs memory."""

from collections.abc import Sequence

import jax

from protocol.cache_groups import CacheGroups
from protocol.config import EngineConfig
from protocol.errors import CapacityError
from tpu_worker.buckets import Bucket
from tpu_worker.layer_groups import LayerGroups
from tpu_worker.models.spec import LayerSpec, ModelSpec
from tpu_worker.platforms.platform import Attention, Memory
from tpu_worker.stacking import Layers, group_alike, group_sizes


def bytes_per_block(spec: ModelSpec, attention: Attention, block_size: int, groups: LayerGroups) -> int:
    """Keys and values of one block in all layers of a group, with their scales and what pads them."""
    places = groups.places(spec)
    features = sum(layer.num_kv_heads * attention.pad_head(layer.head_dim) for layer in places)
    beside = sum(attention.bytes_beside(block_size, layer.num_kv_heads) for layer in places)
    return 2 * block_size * attention.bytes_per_value * features + beside


def working_memory(spec: ModelSpec, bucket: Bucket) -> int:
    """About how many bytes a step works in: its logits and a copy of them, and float32 activations at the widest point of a layer.

    The compiler's own figure would come too late: programs are compiled for a cache of a certain size.
    """
    widest = max(
        max((layer.num_heads + 2 * layer.num_kv_heads) * layer.head_dim, _width_of_mlp(layer, spec.hidden_size))
        for layer in spec.layers
    )
    return 4 * (2 * bucket.rows * spec.vocab_size + bucket.tokens * (2 * spec.hidden_size + widest))


def _width_of_mlp(layer: LayerSpec, hidden_size: int) -> int:
    """Of an MLP gate, other half and product; of experts as many for each that a token chose, with its inputs and what it makes."""
    if layer.experts is None:
        return 3 * layer.intermediate_size
    return layer.experts.chosen * (3 * layer.intermediate_size + 2 * hidden_size)


def make_caches(spec: ModelSpec, attention: Attention, num_blocks: int, block_size: int, groups: LayerGroups) -> Layers:
    """Empty caches of all layers: an array for each place of the groups, those with the same heads stacked."""
    heads = [(layer.num_kv_heads, layer.head_dim) for layer in groups.places(spec)]
    arrays = group_alike(heads)
    sizes = zip(group_sizes(arrays), dict.fromkeys(heads), strict=True)
    caches = tuple(attention.make_caches(count, num_blocks, block_size, *kind) for count, kind in sizes)
    return Layers(caches, tuple(arrays[place] for _, place in groups.where))


def count_blocks(
    config: EngineConfig,
    spec: ModelSpec,
    block_size: int,
    groups: LayerGroups,
    max_model_len: int,
    attention: Attention,
    memory: Memory,
    devices: Sequence[jax.Device],
    pending: int = 0,
) -> int:
    """Blocks for this worker. Raises CapacityError when not one sequence of max_model_len tokens fits, or less is free than asked.

    Never more than the largest batch could use. pending: bytes that weights and programs will yet take on each device.
    """
    block = bytes_per_block(spec, attention, block_size, groups)
    per_sequence = CacheGroups(groups.windows, block_size, config.max_num_batched_tokens).demand(max_model_len)
    whole = len(groups.windows) * -(-max_model_len // block_size)  # with all that windows leave behind, which the prefix cache has
    free = config.kv_cache_memory
    if free is None:
        free = memory.for_kv_cache(devices, config.workers, pending, config.gpu_memory_utilization)
    num_blocks = min(free // block, whole * config.max_num_seqs)
    if config.kv_cache_memory is not None and (left := memory.left(devices, pending)) is not None and num_blocks * block > left:
        raise CapacityError(
            f"--kv-cache-memory {free}: {num_blocks * block} bytes would be used, and the weights and a step leave {left}: "
            "lower it, or leave it out"
        )
    if num_blocks < per_sequence:
        where = "--kv-cache-memory" if config.kv_cache_memory is not None else "the free memory"
        raise CapacityError(
            f"{where} leaves {free} bytes for the KV cache, one sequence of {max_model_len} tokens needs {per_sequence * block}: "
            "lower --max-model-len or give it more"
        )
    return num_blocks
