"""Chips that are not there."""

import math
from collections.abc import Mapping, MutableMapping
from types import MappingProxyType
from typing import Any

from protocol.chips import Topology
from protocol.errors import DeviceError
from tpu_worker.aot.gpus import GPUS

# What libtpu and CUDA must be told before JAX starts, so that they neither look for chips nor mind others.
ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "-1",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v6e-4",  # any one serves: only the topology counts
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
    }
)


def prepare_environment(environ: MutableMapping[str, str], flags: str) -> None:
    """As `ENVIRONMENT` has it, with flags of libtpu's own."""
    environ.update(ENVIRONMENT)
    environ["LIBTPU_INIT_ARGS"] = " ".join(filter(None, (environ.get("LIBTPU_INIT_ARGS"), flags)))


def open_topology(topology: Topology, num_devices: int) -> Any:
    """The `jax.sharding.Mesh` of its first devices. Raises DeviceError when the compiler for it is not installed.

    JAX is imported here: the environment must have been prepared.
    """
    import jax
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh

    from tpu_worker.mesh.layout import AXIS

    chip = topology.chip
    try:
        if (gpu := GPUS.get(chip.name)) is not None:
            name, options = "", {"target_config": gpu.describe(chip.bandwidth), "topology": f"1x1x{topology.num_devices}"}
        else:
            name, options = topology.name, _bounds_of_host(topology)
        found = topologies.get_topology_desc(platform=chip.platform, topology_name=name, **options).devices
    except (RuntimeError, NotImplementedError, ValueError) as error:  # JAX's own, without a compiler for these chips
        said = str(error).splitlines()[0]
        raise DeviceError(f"--topology {topology.name}: {said}: is twodeep[{chip.platform}] installed?") from error
    assert isinstance(found[0], jax.Device)
    return Mesh(np.array(found[:num_devices]), (AXIS,))


def _bounds_of_host(topology: Topology) -> dict[str, Any]:
    """Hosts have 2x2 chips, unless it is said that there are fewer."""
    bounds = (*topology.shape, 1, 1)[:3]
    return {"chips_per_host_bounds": bounds} if math.prod(bounds) < 4 else {}
