"""The CPU: C++ kernels where a compiler is there, XLA's where they are faster or there is none."""

import functools
from collections.abc import Collection
from dataclasses import replace

from protocol.config import FloatType, KvCacheDtype, Quantization
from protocol.eight_bits import check_on_cpu
from protocol.errors import ConfigError
from tpu_worker.models.layers import lookup
from tpu_worker.platforms import xla
from tpu_worker.platforms.cache_types import CacheType
from tpu_worker.platforms.cpu import attention, experts, products
from tpu_worker.platforms.cpu.memory import HostMemory
from tpu_worker.platforms.cpu.native import build
from tpu_worker.platforms.cpu.processor import preferred, prefers_blocks
from tpu_worker.platforms.cpu.stability import measure_rows
from tpu_worker.platforms.platform import Attention, Platform, Products
from tpu_worker.platforms.xla import experts as xla_experts
from tpu_worker.weights.blocks import INT8
from tpu_worker.weights.scaled_rows import NarrowType

_SATURATING_TOKENS = 128  # products of so many rows run at the speed of arithmetic on every CPU measured
_BLOCK_SIZE = 16  # tokens: a panel of the C++ kernel, and small blocks are shared between more prompts


def make_attention(dtype: FloatType = "bfloat16") -> Attention:
    """C++ attention, with keys and values kept as this type."""
    return Attention(
        make_caches=functools.partial(attention.make_caches, dtype=dtype),
        prepare=attention.prepare,
        attend=attention.attend,
        kept=dtype,
    )


def make_xla_products(dtype: FloatType = "bfloat16", narrows_to: NarrowType | None = None) -> Products:
    """XLA's products as they are fastest on a CPU, which widens weights of eight bits slowly: only who asks for them has them."""
    return replace(
        xla.make_products(dtype, narrows_to, keeps_narrow=narrows_to is not None),
        experts=xla_experts.experts_in_tiles,
        scores=xla_experts.scores_in_tiles,
        rows_are_stable=functools.partial(measure_rows, dtype=dtype),
    )


def make_products(quantization: Quantization, kinds: Collection[str] = build.KINDS, dtype: FloatType = "bfloat16") -> Products:
    """C++ products, with weights kept as `products.pack` has it; kinds: of blocks, those that are left as they are."""
    return Products(
        dtype=dtype,
        stacks_layers=True,
        keeps_blocks=frozenset(kinds),
        allocate=products.allocate,
        place=products.place,
        pack=functools.partial(products.pack_into, quantization=quantization, dtype=dtype),
        linear=products.linear,
        pack_experts=functools.partial(experts.pack_experts, quantization=quantization, dtype=dtype),
        experts=experts.experts,
        scores=experts.scores,
        lookup=lookup,
        greedy=products.greedy,
        pick=products.pick,
        mask=products.mask,
        rows_are_stable=lambda *_: True,
    )


def make_platform(
    quantization: Quantization,
    kinds: Collection[str],
    block_size: int | None,
    head_dims: Collection[int],
    dtype: FloatType = "bfloat16",
    kv_cache_dtype: KvCacheDtype = "auto",
) -> Platform:
    """The fastest kernels for these sizes. Raises ConfigError when none serves the quantization, or a KV cache of this type."""
    check_on_cpu(quantization, kv_cache_dtype)
    cached: FloatType = "bfloat16" if kv_cache_dtype == "bfloat16" else dtype
    kept = [kind for kind in build.KINDS if kind in kinds or (quantization == "int8" and kind == INT8)]
    exact = dtype == "float32"
    keeps_blocks = bool(kept) and (quantization == "int8" or (quantization == "auto" and prefers_blocks()))
    suffix = build.FLOAT32 if exact else ""
    attending = f"attention{build.FLOAT32 if cached == 'float32' else ''}"
    names = ("matmul", *((f"matmul{suffix}",) if exact else ()), attending)
    native = build.available(*names, *(f"{name}{suffix}" for name in (("blocks", *kept) if keeps_blocks else ())))
    if quantization == "int8" and not native:
        raise ConfigError("--quantization int8 needs the C++ kernels of the CPU, on one chip: leave the flag out")
    if native:
        _register(names, kept if keeps_blocks else (), suffix)
    attends = native and all(attention.supports(block_size or _BLOCK_SIZE, head_dim) for head_dim in head_dims)
    multiplies = native and (keeps_blocks or exact or preferred() == "native")
    ours = make_products(quantization, kept, dtype) if keeps_blocks else make_products("none", (), dtype)
    return Platform(
        name={(True, True): "C++", (True, False): "C++ and XLA", (False, True): "C++ and XLA", (False, False): "XLA"}[
            attends, multiplies
        ],
        attention=make_attention(cached) if attends else xla.make_attention(cached),
        products=ours if multiplies else make_xla_products(dtype),
        memory=HostMemory(),
        block_size=_BLOCK_SIZE,
        saturating_tokens=_SATURATING_TOKENS,
    )


def _register(names: Collection[str], kinds: Collection[str], suffix: str) -> None:
    """XLA knows all calls of these libraries from now on: programs that were compiled by another process are not traced."""
    for name in (*names, *((f"blocks{suffix}",) if kinds else ())):
        build.library(name)
    for kind in kinds:
        products.kind_number(kind, suffix)


def make_xla_platform(
    dtype: FloatType = "bfloat16", kept: CacheType | None = None, narrows_to: NarrowType | None = None
) -> Platform:
    """XLA's kernels alone. kept: keys and values; None: as other floats. narrows_to: all weights; None: they are floats."""
    return Platform(
        name="XLA",
        attention=xla.make_attention(kept or dtype),
        products=make_xla_products(dtype, narrows_to),
        memory=HostMemory(),
        saturating_tokens=_SATURATING_TOKENS,
    )
