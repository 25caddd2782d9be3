"""Which platform a model runs on. The only place that names them all."""

from collections.abc import Collection

from protocol.config import FloatType, KvCacheDtype, Quantization
from tpu_worker.platforms import cpu, xla
from tpu_worker.platforms.cache_types import resolve
from tpu_worker.platforms.platform import Platform


def choose_platform(
    name: str,
    quantization: Quantization,
    kinds: Collection[str],
    block_size: int | None,
    head_dims: Collection[int],
    num_shards: int = 1,
    dtype: FloatType = "bfloat16",
    num_kv_heads: int = 1,
    kv_cache_dtype: KvCacheDtype = "auto",
) -> Platform:
    """The fastest for devices that JAX calls `name` and these sizes. Raises ConfigError when nothing there serves the quantization,
    the block size, or the type of the KV cache.

    block_size: of the KV cache, in tokens; None: what the platform prefers. kinds: of the blocks in which files hold weights,
    which "auto" leaves as they are where that is faster. num_shards: chips among which the model is cut. dtype:
    what floats are kept in and computed with. num_kv_heads: the fewest that one of the chips has of a layer. kv_cache_dtype:
    what keys and values are kept in.
    """
    if name == "cpu" and num_shards == 1:
        return cpu.make_platform(quantization, kinds, block_size, head_dims, dtype, kv_cache_dtype)
    kept = resolve(kv_cache_dtype, dtype)
    narrows_to = quantization if quantization in ("int8", "fp8") else None
    if name == "cpu":
        return cpu.make_xla_platform(dtype, kept, narrows_to)
    keeps_narrow = quantization != "none" and dtype == "bfloat16"  # as which weights of eight bits are multiplied
    if name == "tpu":
        from tpu_worker.platforms import tpu  # brings Pallas, which the others need not wait for

        products = tpu.make_products(dtype, narrows_to, keeps_narrow=keeps_narrow)
        return tpu.make_platform(block_size, head_dims, num_kv_heads, kept, products)
    if name == "gpu" and dtype == kept == "bfloat16" and narrows_to is None:
        from tpu_worker.platforms import gpu  # likewise

        if gpu.knows_bfloat16():
            return gpu.make_platform()
    return xla.make_platform(dtype, kept, narrows_to, keeps_narrow=keeps_narrow)
