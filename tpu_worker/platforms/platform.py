"""The seam between what the worker does anywhere and how a platform does it: attention, products, memory."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import jax
import numpy.typing as npt

from protocol.config import FloatType
from tpu_worker.largest import largest
from tpu_worker.models.layers import Activation
from tpu_worker.platforms.cache_types import DTYPES, CacheType
from tpu_worker.platforms.metadata import AttentionMetadata, AttentionSpec
from tpu_worker.stacking import Operand
from tpu_worker.weights.blocks import BlockMatrix
from tpu_worker.weights.scaled_rows import NarrowType, ScaledRows

Packed: TypeAlias = Any  # a pytree of arrays in the layout of the products that made it
Cache: TypeAlias = Any  # one layer's keys and values, likewise
Caches: TypeAlias = Any  # those of layers that are alike: a group of `tpu_worker.stacking.Layers`
Prepared: TypeAlias = Any  # what attention works out once a step, for all layers
HostArray: TypeAlias = npt.NDArray[Any]


class MakeCaches(Protocol):
    """Empty caches of layers that are alike."""

    def __call__(self, num_layers: int, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int) -> Caches:
        """Their layout is the platform's own choice."""
        ...


class Prepare(Protocol):
    """What all layers' attention needs of a step, worked out once."""

    def __call__(self, meta: AttentionMetadata, num_tokens: int, block_size: int) -> Prepared:
        """num_tokens: T, padding included. block_size: of the caches, in tokens."""
        ...


class Attend(Protocol):
    """Writes this step's keys and values to the cache, then attends. See `platforms.reference` for the meaning."""

    def __call__(
        self,
        qkv: jax.Array,
        cache: Cache,
        prepared: Prepared,
        rope: jax.Array | None,
        spec: AttentionSpec,
        sinks: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        """qkv [T, (H + 2 KH) * D] float32: all heads of q, of k, of v -> (output [T, H * D] float32, cache).

        rope [positions, R] float32 is `models.rope.rotary_table`, with which q and k are rotated first; None leaves them. Where the
        platform's products have lanes, columns of zeros follow, and the first spec.rotary_dim count.
        sinks [H] float32: of each head a score that takes part in its softmax, and that weighs nothing.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Paged attention, and the cache that it alone can read."""

    make_caches: MakeCaches
    prepare: Prepare
    attend: Attend
    kept: CacheType = "bfloat16"  # what keys and values are in the cache
    bytes_beside: Callable[[int, int], int] = lambda block_size, num_kv_heads: 0  # noqa: ARG005 of a block in a layer: scales
    pad_head: Callable[[int], int] = lambda head_dim: head_dim  # features that the cache has room for in a head of so many
    decodes_apart: bool = False  # steps with as many tokens as rows are for decoding: others are slow in them, but right

    @property
    def bytes_per_value(self) -> int:
        """Of a key or a value in the cache."""
        return DTYPES[self.kept].itemsize


class Allocate(Protocol):
    """An array for weights on the host."""

    def __call__(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> HostArray:
        """All zeros."""
        ...


class Place(Protocol):
    """Hands an array that `Allocate` made and `Pack` filled to the device."""

    def __call__(self, array: HostArray) -> jax.Array:
        """Perhaps the same memory: it must not be written any more, but for the parts of other layers."""
        ...


class Pack(Protocol):
    """Lays a weight out for `Linear`, at load."""

    def __call__(
        self, weight: HostArray | ScaledRows | BlockMatrix | Sequence[BlockMatrix], allocate: Allocate, *, gated: bool = False
    ) -> Packed:
        """weight [out, in] of any float type, if `keeps_scaled` of eight bits, or, if `keeps_blocks`, in blocks, of rows of several
        kinds one after the other.

        gated: its first half of rows gates the second half.

        The result's arrays are NumPy's, from `allocate` if layers are stacked.
        """
        ...


class Linear(Protocol):
    """A matrix product with what surrounds it in a transformer."""

    def __call__(
        self,
        x: jax.Array,
        weight: Packed,
        *,
        activation: Activation | None = None,
        num_rows: jax.Array | None = None,
        norm: Operand | None = None,
        eps: float = 0.0,
        residual: jax.Array | None = None,
    ) -> jax.Array:
        """x [T, in] float32 -> [T, out] float32, or for a gated weight activation(gate) * up, [T, out / 2].

        Rows from num_rows [] int32 on are padding, and their result may be anything. norm [in]: x is divided by the root of
        the mean of its squares (plus eps) and multiplied by norm first. residual [T, out] is added last. Raises ValueError when an
        activation is given for a weight that is not gated, or none for one that is.
        """
        ...


class PackExperts(Protocol):
    """`Pack`, of the weights of a layer's experts: one expert after the other, so that they are never there twice."""

    def __call__(
        self,
        read: Callable[[int], HostArray | ScaledRows | BlockMatrix],
        num_experts: int,
        allocate: Allocate,
        *,
        gated: bool = False,
    ) -> Packed:
        """read(expert): its weight as `Pack` takes it, all of one shape and kind."""
        ...


class Experts(Protocol):
    """The products of a mixture of experts: each token's, with the weights of the experts that it chose, and of no others."""

    def __call__(
        self,
        x: jax.Array,
        chosen: jax.Array,
        shares: jax.Array,
        gate_up: Packed,
        down: Packed,
        *,
        activation: Activation,
        num_rows: jax.Array,
        norm: Operand | None = None,
        eps: float = 0.0,
        gate_up_bias: Operand | None = None,
        down_bias: Operand | None = None,
        residual: jax.Array | None = None,
    ) -> jax.Array:
        """x [T, in] float32 -> residual + for each of its choices shares[t, c] * expert chosen[t, c] of x[t]: [T, out] float32.

        chosen [T, C] int32, shares [T, C] float32: added up in this order. A choice that is no expert's number counts nothing.
        gate_up, gated, and down are `PackExperts`'s. gate_up_bias [2 E, mlp]: those of all gates, then the others; down_bias
        [E, out]. num_rows, norm, eps and residual are as in `Linear`.
        """
        ...


class Scores(Protocol):
    """How well each expert suits a token."""

    def __call__(
        self, x: jax.Array, weight: Operand, *, num_rows: jax.Array, norm: Operand | None = None, eps: float = 0.0
    ) -> jax.Array:
        """x [T, in] float32, weight [E, in] float32 -> x times weight [T, E], float32 throughout. The rest is as in `Linear`.

        Nothing is rounded further: where two experts are nearly as good, that could choose the other one.
        """
        ...


class Lookup(Protocol):
    """Rows of a table."""

    def __call__(self, table: Packed, token_ids: jax.Array) -> jax.Array:
        """table [V, D] of floats, or what `Pack` made of eight bits, token_ids [T] int32 -> [T, D] float32."""
        ...


class Greedy(Protocol):
    """The most likely token of each row."""

    def __call__(self, logits: jax.Array, num_rows: jax.Array) -> jax.Array:
        """logits [R, V] float32 -> [R] int32, as `sampler.greedy`; of rows from num_rows [] int32 on, anything."""
        ...


class Largest(Protocol):
    """The largest value of each row."""

    def __call__(self, values: jax.Array) -> tuple[jax.Array, jax.Array]:
        """values [R, N] float32 -> (the largest [R] float32, its index [R] int32, the first of equals).

        NaN where a row has NaN or +inf; of such a row the index is any within the row.
        """
        ...


class Pick(Protocol):
    """The most likely token that a mask allows, of some rows."""

    def __call__(self, logits: jax.Array, rows: jax.Array, bits: jax.Array) -> jax.Array:
        """logits [R, V] float32, finite in these rows; rows [M] int32, indices of rows, with R or more behind the last one;
        bits [M, ceil(V / 32)] uint32, where bit b of word w allows token 32 w + b -> [M] int32, the first of equals.

        -1 where a mask allows nothing, and behind the last row.
        """
        ...


class Mask(Protocol):
    """Takes away what masks do not allow."""

    def __call__(self, logits: jax.Array, rows: jax.Array, bits: jax.Array) -> jax.Array:
        """Operands as those of `Pick` -> logits [R, V], -inf in these rows where a token is not allowed."""
        ...


class RowsAreStable(Protocol):
    """Whether a row of a product has the same bits whatever rows stand beside it, and however many."""

    def __call__(self, weights: Collection[tuple[int, int]], num_rows: Collection[int]) -> bool:
        """weights: the sizes (out, in) of those to multiply with. num_rows: how many rows there may be."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the sampler does its work. What comes of it is the same everywhere; these defaults are for the CPU."""

    largest: Largest = largest
    values_at_once: int = 0  # logits that are sampled at once, of 8 rows at least; 0: those of 4 rows
    bits_at_once: int = 1  # of a threshold that is searched for (`filters.kth_largest`)

    def rows_at_once(self, width: int) -> int:
        """Rows of so many logits that are sampled together: what sampling costs goes with the rows that are there."""
        return max(8, self.values_at_once // width // 8 * 8) if self.values_at_once else 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Products:
    """Matrix products, and the layout of the weights that they alone can read."""

    dtype: FloatType  # what floats are kept as: matrices that are not in blocks, and the table of embeddings
    stacks_layers: bool  # they take layers out of stacks, as `tpu_worker.stacking` has it
    keeps_blocks: Collection[str]  # of `weights.blocks.KINDS`, those whose weights are not dequantised first
    keeps_scaled: Collection[NarrowType] = ()  # likewise, of those of eight bits with a scale for each output
    narrows_to: NarrowType | None = None  # all matrices, and the table of embeddings, which are not kept so or in blocks
    allocate: Allocate
    place: Place
    pack: Pack
    linear: Linear
    pack_experts: PackExperts
    experts: Experts
    scores: Scores
    lookup: Lookup
    greedy: Greedy
    pick: Pick
    mask: Mask
    rows_are_stable: RowsAreStable
    sampling: Sampling = Sampling()
    lanes: int = 1  # rotary tables are filled up to a multiple of so many columns, so that rows can be taken out as they lie
    # The table of embeddings as the matrix that `pack` would make of it, so that tied ones are in memory once; None: it packs them
    # otherwise.
    as_matrix: Callable[[Packed], Packed] | None = None
    mean_of_shards: Callable[[jax.Array], jax.Array] = lambda x: (
        x
    )  # over the parts that shards have of a row, as large as each other


class Memory(Protocol):
    """The memory that weights and KV cache share, and how this process holds it."""

    def before_loading(self) -> None:
        """Called once, before anything large is taken."""
        ...

    def after_loading(self) -> None:
        """Called once, when weights and caches are there and what loading took is free."""
        ...

    def for_kv_cache(self, devices: Sequence[jax.Device], workers: int, pending: int, utilization: float | None = None) -> int:
        """Bytes on each device that the KV cache of one of `workers` workers on this host may have.

        pending: bytes that weights and programs will yet take on each device. utilization: the part of all memory that may then be
        in use, by whomever; None: a part of what is free, as the platform sees fit. Raises CapacityError when that cannot be told.
        """
        ...

    def left(self, devices: Sequence[jax.Device], pending: int) -> int | None:
        """Bytes that are free on each device, less those pending; None when that cannot be told."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What a loaded model runs on, chosen once."""

    name: str  # of its kernels, for people: "C++", "XLA"
    attention: Attention
    products: Products
    memory: Memory
    block_size: int = 16  # tokens of a KV block, that it prefers
    saturating_tokens: int = 0  # of a step: from so many on its time grows in proportion; 0: not known
    padding_costs: bool = False  # its products take as long for rows that are padding as for others
    is_remote: bool = False  # results lie on a device, and the copy of them to the host is worth an early start

    def fetch(self, array: jax.Array) -> None:
        """Has the array brought here as soon as it is there."""
        if self.is_remote:
            array.copy_to_host_async()
