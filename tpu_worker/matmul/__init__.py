"""Matrix products with weights that were packed once, at load."""

from typing import Literal

from tpu_worker.native.build import cpu_flags

MatmulKind = Literal["native", "xla"]


def preferred(flags: frozenset[str] | None = None) -> MatmulKind:
    """Which product is the faster one on a CPU with these flags (by default, this one).

    With AMX, XLA multiplies bf16 by bf16 at several times the peak of f32 arithmetic, which is all that the native kernel uses.
    """
    return "xla" if "amx_bf16" in (cpu_flags() if flags is None else flags) else "native"
