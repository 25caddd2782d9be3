"""What fits into a chip's memory, and what would help where it does not. Pure."""

from collections.abc import Iterator

import msgspec

from protocol.aot_messages import Drawn
from protocol.cache_groups import CacheGroups
from protocol.chips import Topology, shape_for
from protocol.config import EngineConfig

# Of what weights and steps leave, for the KV cache, unless the operator says something else: as the worker takes it.
_SHARE = 0.85


def cache_memory(drawn: Drawn, config: EngineConfig, weights: int | None = None) -> int:
    """Bytes that the KV cache may take. weights: in place of those that were drawn."""
    left = drawn.hbm - drawn.working_memory - (drawn.weights if weights is None else weights)
    if config.kv_cache_memory is not None:
        return config.kv_cache_memory if config.kv_cache_memory <= left else 0
    if config.gpu_memory_utilization is not None:
        return max(0, left - int(drawn.hbm * (1.0 - config.gpu_memory_utilization)))
    return max(0, int(left * _SHARE))


def longest_context(drawn: Drawn, config: EngineConfig, most: int) -> int:
    """Tokens of the longest sequence that fits by itself, in whole blocks, `most` at most; 0: none."""
    groups = CacheGroups(drawn.windows, drawn.block_size, config.max_num_batched_tokens)
    blocks = cache_memory(drawn, config) // drawn.bytes_per_block
    if groups.demand(most) <= blocks:
        return most
    low, high = 0, -(-most // drawn.block_size)  # blocks of a sequence: the first fits, the second does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if groups.demand(middle * drawn.block_size) <= blocks else (low, middle)
    return low * drawn.block_size


def misfit(drawn: Drawn, config: EngineConfig, topology: Topology) -> list[str]:
    """By how much a sequence of `max_model_len` tokens does not fit, and what would help; empty: it fits."""
    if drawn.num_blocks >= drawn.blocks_per_sequence:
        return []
    wanted, free = drawn.blocks_per_sequence * drawn.bytes_per_block, cache_memory(drawn, config)
    return [
        f"does not fit on {topology.name}: a sequence of {drawn.max_model_len} tokens takes {gib(wanted)} of KV cache, and there "
        f"is room for {gib(free)} ({gib(max(0, wanted - free))} too little): of {gib(drawn.hbm)} weights take "
        f"{gib(drawn.weights)}, and {gib(drawn.working_memory)} are kept for steps",
        *(f"would help: {way}" for way in _ways_out(drawn, config, topology, wanted)),
    ]


def _ways_out(drawn: Drawn, config: EngineConfig, topology: Topology, wanted: int) -> Iterator[str]:
    left = drawn.hbm - drawn.weights - drawn.working_memory
    if config.kv_cache_memory is not None and wanted <= left:
        yield f"--kv-cache-memory from {wanted} to {left}, or none"
    if length := longest_context(drawn, config, drawn.max_model_len):
        yield f"--max-model-len {length} or less"
    if config.kv_cache_memory is not None:
        if wanted <= left:
            return  # nothing else is amiss
        config = msgspec.structs.replace(config, kv_cache_memory=None)
    here = next((need for need in drawn.needs if need.tensor_parallel_size == config.tensor_parallel_size), None)
    if here is None:
        return

    def fits(weights: int, cache: int) -> bool:
        return cache <= cache_memory(drawn, config, weights)

    def verdict(weights: int, cache: int) -> str:
        return "fits" if fits(weights, cache) else "is not enough alone"

    is_int8 = drawn.quantization == "int8"
    more = (need for need in drawn.needs if need.tensor_parallel_size > config.tensor_parallel_size)
    for need in more:
        weights = need.weights_int8 if is_int8 else need.weights
        cache = wanted * need.per_token // max(1, here.per_token)
        if fits(weights, cache) and (shape := shape_for(topology.chip, need.tensor_parallel_size)) is not None:
            of_topology = "" if need.tensor_parallel_size <= topology.num_devices else f" --topology {topology.chip.name}:{shape}"
            yield (
                f"--tensor-parallel-size {need.tensor_parallel_size}{of_topology}: weights of {gib(weights)} and {gib(cache)} of "
                "KV cache on each chip"
            )
            break
    half = wanted * here.per_token_fp8 // max(1, here.per_token)
    narrow = here.weights_int8
    if not is_int8 and narrow < drawn.weights:
        yield (
            f"--quantization int8: weights of {gib(narrow)}, {gib(drawn.weights - narrow)} less, "
            f"{verdict(narrow, wanted)}"
        )  # fmt: skip
    if half < wanted:
        yield f"--kv-cache-dtype fp8: {gib(half)} of KV cache, {gib(wanted - half)} less, {verdict(drawn.weights, half)}"
        neither = not fits(narrow, wanted) and not fits(drawn.weights, half)
        if not is_int8 and narrow < drawn.weights and neither and fits(narrow, half):
            yield "--quantization int8 and --kv-cache-dtype fp8 together: fits"


def gib(size: float) -> str:
    """For people."""
    return f"{size / 2**30:.2f} GiB" if size >= 1 << 28 else f"{size / 2**20:.1f} MiB"
