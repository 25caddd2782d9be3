"""NVIDIA GPUs: attention in Pallas on Triton, products by XLA, which has cuBLAS for them."""

import jax

from tpu_worker.platforms import xla
from tpu_worker.platforms.gpu import attention
from tpu_worker.platforms.platform import Attention, Platform
from tpu_worker.platforms.xla.memory import AcceleratorMemory

_AMPERE = 8  # compute capability


def make_attention(*, interpret: bool = False) -> Attention:
    """interpret: run by Pallas' interpreter, on whatever is there; slow, to see what is computed."""
    return Attention(
        make_caches=attention.make_caches,
        prepare=attention.prepare,
        attend=attention.Attend(interpret),
        decodes_apart=True,
    )


def make_platform(*, interpret: bool = False) -> Platform:
    """For GPUs with tensor cores for bfloat16. interpret: as `make_attention` has it."""
    return Platform(
        name="Triton",
        attention=make_attention(interpret=interpret),
        products=xla.PRODUCTS,
        memory=AcceleratorMemory(),
        is_remote=True,
    )


def knows_bfloat16() -> bool:
    """Whether the GPUs here multiply bfloat16: NVIDIA's do from Ampere on. True where none is, and programs are for others."""
    try:
        devices = jax.local_devices(backend="gpu")
    except RuntimeError:
        return True
    major = str(devices[0].compute_capability).partition(".")[0]  # "8.9"; of others' GPUs, a name
    return major.isdigit() and int(major) >= _AMPERE
