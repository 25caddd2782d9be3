"""Plain XLA: runs wherever JAX does."""

import functools

from protocol.config import FloatType
from tpu_worker.platforms.cache_types import CacheType
from tpu_worker.platforms.platform import Attention, Platform, Products
from tpu_worker.platforms.xla import attention, experts, products
from tpu_worker.platforms.xla.memory import AcceleratorMemory
from tpu_worker.weights.scaled_rows import DTYPES, NarrowType


def make_attention(kept: CacheType = "bfloat16") -> Attention:
    """With keys and values kept as this type."""
    return Attention(
        make_caches=functools.partial(attention.make_caches, kept=kept),
        prepare=attention.prepare,
        attend=functools.partial(attention.attend, kept=kept),
        kept=kept,
        bytes_beside=attention.bytes_of_scales if kept == "int8" else lambda block_size, num_kv_heads: 0,  # noqa: ARG005
    )


def make_products(dtype: FloatType = "bfloat16", narrows_to: NarrowType | None = None, *, keeps_narrow: bool = True) -> Products:
    """For an accelerator, with weights kept as this type, or in eight bits: all of them, or those that the files hold so."""
    return Products(
        dtype=dtype,
        stacks_layers=False,
        keeps_blocks=(),
        keeps_scaled=tuple(DTYPES) if keeps_narrow else (),
        narrows_to=narrows_to,
        allocate=products.allocate,
        place=products.place,
        pack=functools.partial(products.pack, dtype=dtype),
        linear=products.linear,
        pack_experts=functools.partial(experts.pack_experts, dtype=dtype),
        experts=experts.experts,
        scores=experts.scores,
        lookup=products.lookup,
        greedy=products.greedy,
        pick=products.pick,
        mask=products.mask,
        as_matrix=products.as_matrix,
        rows_are_stable=lambda *_: False,  # nobody says so of an accelerator's products, and to measure it takes long there
    )


def make_platform(
    dtype: FloatType = "bfloat16", kept: CacheType | None = None, narrows_to: NarrowType | None = None, *, keeps_narrow: bool = True
) -> Platform:
    """For an accelerator. kept: keys and values; None: as other floats. The rest is as in `make_products`."""
    return Platform(
        name="XLA",
        attention=make_attention(kept or dtype),
        products=make_products(dtype, narrows_to, keeps_narrow=keeps_narrow),
        memory=AcceleratorMemory(),
        is_remote=True,
    )


ATTENTION, PRODUCTS = make_attention(), make_products()
