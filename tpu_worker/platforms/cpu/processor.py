"""What the processor is good at."""

from typing import Literal

from tpu_worker.platforms.cpu.native.build import cpu_flags

MatmulKind = Literal["native", "xla"]


def preferred(flags: frozenset[str] | None = None) -> MatmulKind:
    """Which product is the faster one on a CPU with these flags (by default, this one).

    With AMX, XLA multiplies bf16 by bf16 at several times the speed of the vectors that the native kernel uses.
    """
    return "xla" if "amx_bf16" in (cpu_flags() if flags is None else flags) else "native"


def prefers_blocks(flags: frozenset[str] | None = None) -> bool:
    """Whether weights that are in blocks of few bits are better left so on a CPU with these flags (by default, this one).

    They take more arithmetic than bf16 and less reading: a gain with the vectors of AVX2 or AVX-512, a loss without any.
    """
    flags = cpu_flags() if flags is None else flags
    return "avx2" in flags and preferred(flags) == "native"
