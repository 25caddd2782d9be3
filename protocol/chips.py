"""What is published of accelerators that programs are compiled for, and how several of them are named together."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from protocol.errors import ConfigError

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Chip:
    """One device as JAX counts them: a chip, but of TPU v7x, whose chips are two devices, half of one."""

    name: str  # as a topology begins
    platform: Literal["tpu", "cuda"]
    description: str  # for people
    memory: int  # bytes that programs may take
    bandwidth: float  # of that memory, bytes a second
    bfloat16_rate: float  # of the matrix units, operations a second
    clock: float  # of the compiler's cycles, 1/s; 0: it counts none
    link_bandwidth: float  # bytes a second to the neighbours along one axis of the mesh, both ways together
    link_latency: float  # seconds to a neighbour
    shapes: tuple[str, ...]  # that several of them may be put together in
    devices_per_chip: int = 1


_FLAT = ("1x1", "1x2", "2x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SERVERS = ("1", "2", "4", "8")
_CUBES = ("1x1x1", "1x2x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4")

# TPUs. Rates, bandwidths and links: cloud.google.com/tpu/docs (v5e, v6e, v7x), halved for a core of v7x. Memory: what libtpu 0.0.42
# calls available, which is a little less than what is built in. Clocks: the peak rates by the size of the matrix units. Latency of
# a link: "How to Scale Your Model" (Austin et al. 2025), about a microsecond.
# GPUs. NVIDIA's data sheets: rates without sparsity, NVLink where there is one, memory without the driver's share.
_ALL = (
    Chip("v5e", "tpu", "TPU v5e", int(15.75 * GIB), 819e9, 197e12, 1.5e9, 90e9, 1e-6, _FLAT),
    Chip("v6e", "tpu", "TPU v6e", int(31.25 * GIB), 1640e9, 918e12, 1.75e9, 180e9, 1e-6, _FLAT),
    Chip("tpu7x", "tpu", "TPU v7x, one core", int(94.75 * GIB), 3690e9, 1153e12, 2.2e9, 200e9, 1e-6, _CUBES, 2),
    Chip("h100", "cuda", "NVIDIA H100 80GB", 79 * GIB, 3350e9, 989e12, 0.0, 900e9, 1e-6, _SERVERS),
    Chip("a100", "cuda", "NVIDIA A100 80GB", 79 * GIB, 2039e9, 312e12, 0.0, 600e9, 1e-6, _SERVERS),
    Chip("l4", "cuda", "NVIDIA L4", 22 * GIB, 300e9, 121e12, 0.0, 64e9, 1e-6, _SERVERS),
)
CHIPS: Mapping[str, Chip] = MappingProxyType({chip.name: chip for chip in _ALL})
_OTHER_NAMES = {"v5litepod": "v5e", "v7x": "tpu7x"}


@dataclass(frozen=True, slots=True)
class Topology:
    """Several chips of one kind in a grid."""

    chip: Chip
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """As it is given: `v6e:2x2`."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def num_devices(self) -> int:
        """As JAX counts them."""
        return math.prod(self.shape) * self.chip.devices_per_chip


def parse_topology(name: str) -> Topology:
    """`v6e:2x2`; without a shape, one chip. Raises ConfigError naming --topology and what is possible."""
    kind, _, shape = name.strip().lower().partition(":")
    chip = CHIPS.get(_OTHER_NAMES.get(kind, kind))
    if chip is None:
        known = ", ".join(f"{one.name}:{one.shapes[0]}" for one in CHIPS.values())
        raise ConfigError(f"--topology {name}: no such chip is known; possible are {known} and larger ones")
    shape = shape or chip.shapes[0]
    if shape not in chip.shapes:
        possible = ", ".join(f"{chip.name}:{one}" for one in chip.shapes)
        raise ConfigError(f"--topology {name}: {chip.description}s do not come in this shape; possible are {possible}")
    return Topology(chip, tuple(map(int, shape.split("x"))))


def check_fits(topology: Topology, tensor_parallel_size: int) -> None:
    """Raises ConfigError naming both flags when a worker needs more devices than there are."""
    if tensor_parallel_size > (most := topology.num_devices):
        larger = shape_for(topology.chip, tensor_parallel_size)
        way_out = f", or a larger topology: {topology.chip.name}:{larger}" if larger else ""
        raise ConfigError(
            f"--tensor-parallel-size {tensor_parallel_size}: --topology {topology.name} has {most} devices: "
            f"give {most} at most{way_out}"
        )


def shape_for(chip: Chip, num_devices: int) -> str | None:
    """The smallest with so many devices; None: there is none."""
    return next((shape for shape in chip.shapes if _devices(chip, shape) >= num_devices), None)


def _devices(chip: Chip, shape: str) -> int:
    return math.prod(map(int, shape.split("x"))) * chip.devices_per_chip
