"""TPUs: attention in Pallas, products by XLA, which knows no better there."""

import functools
from collections.abc import Collection
from dataclasses import replace

from protocol.config import FloatType
from protocol.errors import ConfigError
from tpu_worker.lanes import LANES, fill_lanes
from tpu_worker.platforms import xla
from tpu_worker.platforms.cache_types import DTYPES, CacheType
from tpu_worker.platforms.platform import Attention, Platform, Products
from tpu_worker.platforms.tpu import attention
from tpu_worker.platforms.tpu import products as kernels
from tpu_worker.platforms.tpu.layout import RowLayout, group_of
from tpu_worker.platforms.tpu.pages import Interpret
from tpu_worker.platforms.xla.memory import AcceleratorMemory
from tpu_worker.weights.scaled_rows import NarrowType

_SMALLEST = 16  # tokens of a block
_BLOCK_SIZES = (64, 128, 256)  # tokens: smaller ones are shared between more prompts, and moved more slowly
_BYTES_AT_ONCE = 64 << 10  # of a block and layer: what comes in one piece, and from so many on is moved at nearly full speed


def make_attention(kept: CacheType = "bfloat16", *, interpret: Interpret = False) -> Attention:
    """kept: keys and values. interpret: run by Pallas' interpreter, on whatever is there; slow, to see what is computed."""
    return Attention(
        make_caches=functools.partial(attention.make_caches, kept=kept),
        prepare=attention.prepare,
        attend=attention.Attend(interpret, kept),
        kept=kept,
        bytes_beside=_bytes_of_scales if kept == "int8" else lambda block_size, num_kv_heads: 0,  # noqa: ARG005
        pad_head=lambda head_dim: RowLayout(head_dim).width // 2,
        decodes_apart=True,
    )


def _bytes_of_scales(block_size: int, num_kv_heads: int) -> int:
    return 4 * num_kv_heads * fill_lanes(block_size)


def make_products(dtype: FloatType = "bfloat16", narrows_to: NarrowType | None = None, *, keeps_narrow: bool = True) -> Products:
    """XLA's, but for what it does not find by itself."""
    made = xla.make_products(dtype, narrows_to, keeps_narrow=keeps_narrow)
    return replace(made, experts=kernels.experts, greedy=kernels.greedy, pick=kernels.pick, sampling=kernels.SAMPLING, lanes=LANES)


PRODUCTS = make_products()


def make_platform(
    block_size: int | None,
    head_dims: Collection[int],
    num_kv_heads: int,
    kept: CacheType = "bfloat16",
    products: Products = PRODUCTS,
    *,
    interpret: Interpret = False,
) -> Platform:
    """For TPUs. Raises ConfigError when the kernels cannot work with blocks of this size.

    num_kv_heads: of a chip's part of a layer, the fewest. kept, interpret: as `make_attention` has it.
    """
    smallest = max(_SMALLEST, group_of(DTYPES[kept]))  # whole tiles
    if block_size is not None and not smallest <= block_size <= _BLOCK_SIZES[-1]:
        of = f" with a KV cache of {kept}" if smallest > _SMALLEST else ""
        raise ConfigError(f"--block-size {block_size}: on TPUs it is from {smallest} to {_BLOCK_SIZES[-1]}{of}: leave the flag out")
    return Platform(
        name="Pallas",
        attention=make_attention(kept, interpret=interpret),
        products=products,
        memory=AcceleratorMemory(),
        block_size=preferred_block_size(head_dims, num_kv_heads, kept),
        padding_costs=True,
        is_remote=True,
    )


def preferred_block_size(head_dims: Collection[int], num_kv_heads: int, kept: CacheType = "bfloat16") -> int:
    """The smallest whose blocks come in pieces that are large enough, even of the smallest layer; scales fill whole registers."""
    per_token = DTYPES[kept].itemsize * num_kv_heads * min(RowLayout(head_dim).width for head_dim in head_dims)
    sizes = [size for size in _BLOCK_SIZES if kept != "int8" or size >= LANES]
    return next((size for size in sizes if size * per_token >= _BYTES_AT_ONCE), sizes[-1])
