"""The processors that this one can pass for: those whose vector instructions are some of its own.

Kernels round as the vectors do that they are compiled for, so bounds on rounding errors are tried for all of these processors.
"""

from dataclasses import dataclass
from pathlib import Path

_AVX2 = {"avx", "avx2", "fma", "f16c"}
_AVX512 = _AVX2 | {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}
_BF16 = _AVX512 | {"avx512_vnni", "avx512_bf16"}
_VECTORS = _BF16 | {"avx512_fp16", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8"}  # what code is chosen by


@dataclass(frozen=True)
class Processor:
    """One that compilers know by name."""

    vectors: frozenset[str]  # its vector instructions, as Linux names them
    xla_isa: str  # the best that XLA may use there


PROCESSORS = {
    "x86-64": Processor(frozenset(), "SSE4_2"),
    "haswell": Processor(frozenset(_AVX2), "AVX2"),
    "skylake-avx512": Processor(frozenset(_AVX512), "AVX512"),
    "cooperlake": Processor(frozenset(_BF16), "AVX512_BF16"),
}


def read_processor() -> tuple[str, frozenset[str]]:
    """Model name and flags of this machine's processor; empty where Linux does not say."""
    facts: dict[str, str] = {}
    path = Path("/proc/cpuinfo")
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    return facts.get("model name", ""), frozenset(facts.get("flags", facts.get("Features", "")).split())


def describe() -> str:
    """This machine's processor in a line."""
    name, flags = read_processor()
    return f"{name or 'unknown'} ({' '.join(sorted(flags & _VECTORS)) or 'no vectors of x86'})"


def lesser() -> list[str]:
    """Those of PROCESSORS that this machine can pass for and that have fewer vector instructions."""
    flags = read_processor()[1]
    return [name for name, other in PROCESSORS.items() if "sse4_2" in flags and other.vectors < flags & _VECTORS]


def flags_of(processor: str) -> frozenset[str]:
    """This machine's flags without the vector instructions that the processor lacks."""
    return read_processor()[1] - (_VECTORS - PROCESSORS[processor].vectors)
