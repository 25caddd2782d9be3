"""Which platform a model runs on. The only place that names them all."""

from collections.abc import Collection

from protocol.config import Quantization
from protocol.errors import ConfigError
from tpu_worker.platforms import cpu, xla
from tpu_worker.platforms.platform import Platform


def choose_platform(
    name: str, quantization: Quantization, in_blocks: bool, block_size: int, head_dims: Collection[int]
) -> Platform:
    """The fastest for devices that JAX calls `name` and these sizes. Raises ConfigError when nothing there serves the quantization.

    in_blocks: whether the files hold weights in blocks, which "auto" then leaves as they are where that is faster.
    """
    if name == "cpu":
        return cpu.make_platform(quantization, in_blocks, block_size, head_dims)
    if quantization == "int8":
        raise ConfigError("--quantization int8 needs the C++ kernels of the CPU: leave the flag out")
    return xla.make_platform()
