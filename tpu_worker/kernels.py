"""The seam below the models: which attention and which matrix product a loaded model runs on."""

import functools
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import jax
import numpy.typing as npt

from protocol.config import Quantization
from protocol.errors import ConfigError
from tpu_worker.attention import AttentionMetadata
from tpu_worker.attention import cpu as cpu_attention
from tpu_worker.attention import xla as xla_attention
from tpu_worker.matmul import cpu as cpu_matmul
from tpu_worker.matmul import preferred, prefers_blocks
from tpu_worker.matmul import xla as xla_matmul
from tpu_worker.matmul.blocks import BlockMatrix
from tpu_worker.native import build
from tpu_worker.native.memory import Allocate
from tpu_worker.sampler import greedy
from tpu_worker.stacking import Operand

Packed: TypeAlias = Any  # a pytree of arrays in the layout of the kernel that made it
Cache: TypeAlias = Any  # one layer's keys and values, likewise
Caches: TypeAlias = Any  # those of all layers: see `tpu_worker.stacking`
HostMatrix: TypeAlias = npt.NDArray[Any]  # [out, in], any float type


class Attend(Protocol):
    """Writes this step's keys and values to the cache, then attends. See `attention.reference` for the meaning."""

    def __call__(
        self,
        qkv: jax.Array,
        cache: Cache,
        meta: AttentionMetadata,
        rope: jax.Array | None,
        *,
        num_heads: int,
        scale: float,
        sliding_window: int | None = None,
        soft_cap: float | None = None,
    ) -> tuple[jax.Array, Cache]:
        """qkv [T, (H + 2 KH) * D] float32: all heads of q, of k, of v -> (output [T, H, D] float32, cache).

        rope [positions, R] float32 is `models.layers.rotary_table`, with which q and k are rotated first; None leaves them.
        """
        ...


class MakeCaches(Protocol):
    """Empty caches of all layers."""

    def __call__(self, num_layers: int, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int) -> Caches:
        """Their layout is the kernel's own choice."""
        ...


class Pack(Protocol):
    """Lays a weight out for `Linear`, at load."""

    def __call__(self, weight: HostMatrix | BlockMatrix, allocate: Allocate, *, gated: bool = False) -> Packed:
        """weight [out, in], in blocks if the kernels pack these; gated: its first half of rows gates the second half.

        The result's arrays are JAX's, or NumPy's from `allocate`.
        """
        ...


class Linear(Protocol):
    """A matrix product with what surrounds it in a transformer."""

    def __call__(
        self,
        x: jax.Array,
        weight: Packed,
        *,
        num_rows: jax.Array | None = None,
        norm: Operand | None = None,
        eps: float = 0.0,
        residual: jax.Array | None = None,
    ) -> jax.Array:
        """x [T, in] float32 -> [T, out] float32, or for a gated weight silu(gate) * up, [T, out / 2].

        Rows from num_rows [] int32 on are padding, and their result may be anything. norm [in]: x is divided by the root of
        the mean of its squares (plus eps) and multiplied by norm first. residual [T, out] is added last.
        """
        ...


class Greedy(Protocol):
    """The most likely token of each row."""

    def __call__(self, logits: jax.Array, num_rows: jax.Array) -> jax.Array:
        """logits [R, V] float32 -> [R] int32, as `sampler.greedy`; of rows from num_rows [] int32 on, anything."""
        ...


@dataclass(frozen=True, slots=True)
class Kernels:
    """Functions of one platform, chosen once at load."""

    name: str
    attend: Attend
    make_caches: MakeCaches
    stacked: bool  # the layers' weights, as `tpu_worker.stacking` has it
    packs_blocks: bool  # weights that a file holds in blocks, without these being dequantised first
    pack: Pack
    linear: Linear
    greedy: Greedy


def choose_kernels(platform: str, quantization: Quantization, in_blocks: bool, block_size: int, head_dim: int) -> Kernels:
    """The fastest kernels for a JAX platform and these sizes. Raises ConfigError when nothing there serves the quantization.

    in_blocks: whether the files hold weights in blocks, which "auto" then leaves as they are.
    """
    keeps_blocks = quantization == "int8" or (quantization == "auto" and in_blocks and prefers_blocks())
    kernels = xla_kernels()
    if platform != "cpu" or not build.available("matmul", "attention", *(("blocks",) if keeps_blocks else ())):
        if quantization == "int8":
            raise ConfigError("--quantization int8 needs the C++ kernels of the CPU: leave the flag out")
        return kernels
    if cpu_attention.supports(block_size, head_dim):
        kernels = replace(kernels, name="C++ and XLA", attend=cpu_attention.attend_fused, make_caches=cpu_attention.make_caches)
    if not keeps_blocks and preferred() == "xla":
        return kernels
    pack = functools.partial(cpu_matmul.pack_into, quantization=quantization if keeps_blocks else "none")
    return Kernels("C++", kernels.attend, kernels.make_caches, True, True, pack, cpu_matmul.linear, cpu_matmul.greedy)


def xla_kernels() -> Kernels:
    """What runs wherever JAX does."""
    return Kernels(
        "XLA",
        xla_attention.attend_fused,
        xla_attention.make_caches,
        False,
        False,
        lambda weight, _, *, gated=False: xla_matmul.pack(weight, gated=gated),
        xla_matmul.linear,
        lambda logits, _: greedy(logits),
    )
