"""TPUs: attention in Pallas, products by XLA, which knows no better there."""

from collections.abc import Collection
from dataclasses import replace

from protocol.errors import ConfigError
from tpu_worker.platforms import greedy, xla
from tpu_worker.platforms.platform import Attention, Platform, Products
from tpu_worker.platforms.tpu import attention
from tpu_worker.platforms.tpu.layout import GROUP, LANES, RowLayout
from tpu_worker.platforms.tpu.pages import Interpret
from tpu_worker.platforms.xla.memory import AcceleratorMemory

PRODUCTS: Products = replace(xla.PRODUCTS, greedy=greedy.greedy, pick=greedy.pick, sampling=greedy.SAMPLING, lanes=LANES)

_BLOCK_SIZES = (64, 128, 256)  # tokens: smaller ones are shared between more prompts, and moved more slowly
_BYTES_AT_ONCE = 64 << 10  # of a block and layer: what comes in one piece, and from so many on is moved at nearly full speed


def make_attention(*, interpret: Interpret = False) -> Attention:
    """interpret: run by Pallas' interpreter, on whatever is there; slow, to see what is computed."""
    return Attention(
        make_caches=attention.make_caches,
        prepare=attention.prepare,
        attend=attention.Attend(interpret),
        pad_head=lambda head_dim: RowLayout(head_dim).width // 2,
        decodes_apart=True,
    )


def make_platform(
    block_size: int | None, head_dims: Collection[int], num_kv_heads: int, *, interpret: Interpret = False
) -> Platform:
    """For TPUs. Raises ConfigError when the kernels cannot work with blocks of this size.

    num_kv_heads: of a chip's part of a layer, the fewest. interpret: as `make_attention` has it.
    """
    if block_size is not None and not GROUP <= block_size <= _BLOCK_SIZES[-1]:
        raise ConfigError(f"--block-size {block_size}: on TPUs it is from {GROUP} to {_BLOCK_SIZES[-1]}: leave the flag out")
    return Platform(
        name="Pallas",
        attention=make_attention(interpret=interpret),
        products=PRODUCTS,
        memory=AcceleratorMemory(),
        block_size=preferred_block_size(head_dims, num_kv_heads),
        is_remote=True,
    )


def preferred_block_size(head_dims: Collection[int], num_kv_heads: int) -> int:
    """The smallest whose blocks come in pieces that are large enough, even of the smallest layer."""
    per_token = 2 * num_kv_heads * min(RowLayout(head_dim).width for head_dim in head_dims)  # bfloat16
    return next((size for size in _BLOCK_SIZES if size * per_token >= _BYTES_AT_ONCE), _BLOCK_SIZES[-1])
