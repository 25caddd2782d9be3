"""Which platform a model runs on. The only place that names them all."""

from collections.abc import Collection

from protocol.config import FloatType, Quantization
from protocol.errors import ConfigError
from tpu_worker.platforms import cpu, xla
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
) -> Platform:
    """The fastest for devices that JAX calls `name` and these sizes. Raises ConfigError when nothing there serves the quantization,
    or the block size.

    block_size: of the KV cache, in tokens; None: what the platform prefers. kinds: of the blocks in which files hold weights,
    which "auto" leaves as they are where that is faster. num_shards: chips among which the model is cut. dtype:
    what floats are kept in and computed with. num_kv_heads: the fewest that one of the chips has of a layer.
    """
    if name == "cpu" and num_shards == 1:
        return cpu.make_platform(quantization, kinds, block_size, head_dims, dtype)
    if quantization == "int8":
        raise ConfigError("--quantization int8 needs the C++ kernels of the CPU, on one chip: leave the flag out")
    if name == "cpu":
        return cpu.make_xla_platform(dtype)
    if name == "tpu" and dtype == "bfloat16":  # the only type of the kernels
        from tpu_worker.platforms import tpu  # brings Pallas, which the others need not wait for

        return tpu.make_platform(block_size, head_dims, num_kv_heads)
    if name == "gpu" and dtype == "bfloat16":
        from tpu_worker.platforms import gpu  # likewise

        if gpu.knows_bfloat16():
            return gpu.make_platform()
    return xla.make_platform(dtype)
