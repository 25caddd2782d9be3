"""Plain XLA: runs wherever JAX does."""

import functools

from protocol.config import FloatType
from tpu_worker.models.layers import lookup
from tpu_worker.platforms.platform import Attention, Platform, Products
from tpu_worker.platforms.xla import attention, experts, products
from tpu_worker.platforms.xla.memory import AcceleratorMemory


def make_attention(dtype: FloatType = "bfloat16") -> Attention:
    """With keys and values kept as this type."""
    return Attention(
        make_caches=functools.partial(attention.make_caches, dtype=dtype),
        prepare=attention.prepare,
        attend=attention.attend,
        bytes_per_value=2 if dtype == "bfloat16" else 4,
    )


def make_products(dtype: FloatType = "bfloat16") -> Products:
    """For an accelerator, with weights kept as this type."""
    return Products(
        dtype=dtype,
        stacks_layers=False,
        keeps_blocks=(),
        allocate=products.allocate,
        place=products.place,
        pack=functools.partial(products.pack, dtype=dtype),
        linear=products.linear,
        pack_experts=functools.partial(experts.pack_experts, dtype=dtype),
        experts=experts.experts,
        scores=experts.scores,
        lookup=lookup,
        greedy=products.greedy,
        pick=products.pick,
        mask=products.mask,
        as_matrix=products.as_matrix,
        rows_are_stable=lambda *_: False,  # nobody says so of an accelerator's products, and to measure it takes long there
    )


def make_platform(dtype: FloatType = "bfloat16") -> Platform:
    """For an accelerator."""
    return Platform(
        name="XLA",
        attention=make_attention(dtype),
        products=make_products(dtype),
        memory=AcceleratorMemory(),
        is_remote=True,
    )


ATTENTION, PRODUCTS = make_attention(), make_products()
