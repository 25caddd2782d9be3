"""What of weights and KV cache is kept in eight bits where: asked by the launcher, before anything starts, and by the platforms."""

from protocol.config import KvCacheDtype, Quantization
from protocol.errors import ConfigError


def check_on_cpu(quantization: Quantization, kv_cache_dtype: KvCacheDtype) -> None:
    """Raises ConfigError for what the kernels of a CPU do not know, on one chip. Several go without these kernels."""
    if quantization == "fp8":
        raise ConfigError("--quantization fp8: a CPU keeps weights in 8 bits as --quantization int8 has it: give that")
    if kv_cache_dtype not in ("auto", "bfloat16"):
        raise ConfigError(
            f"--kv-cache-dtype {kv_cache_dtype}: a CPU keeps keys and values as --dtype says, or as bfloat16: leave the flag out"
        )
