"""Plain XLA: runs wherever JAX does."""

from tpu_worker.models.layers import lookup
from tpu_worker.platforms.platform import Attention, Platform, Products
from tpu_worker.platforms.xla import attention, experts, products
from tpu_worker.platforms.xla.memory import AcceleratorMemory

ATTENTION = Attention(make_caches=attention.make_caches, prepare=attention.prepare, attend=attention.attend)
PRODUCTS = Products(
    stacks_layers=False,
    keeps_blocks=(),
    allocate=products.allocate,
    place=products.place,
    pack=products.pack,
    linear=products.linear,
    pack_experts=experts.pack_experts,
    experts=experts.experts,
    scores=experts.scores,
    lookup=lookup,
    greedy=products.greedy,
    pick=products.pick,
    mask=products.mask,
    rows_are_stable=lambda *_: False,  # nobody says so of an accelerator's products, and to measure it takes long there
)


def make_platform() -> Platform:
    """For an accelerator."""
    return Platform(name="XLA", attention=ATTENTION, products=PRODUCTS, memory=AcceleratorMemory(), is_remote=True)
