"""Chips that are not there."""

from collections.abc import Mapping, MutableMapping
from types import MappingProxyType
from typing import Any

from protocol.chips import Topology
from protocol.errors import DeviceError

# What libtpu must be told before JAX starts, so that it neither looks for chips nor minds others.
ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {
        "JAX_PLATFORMS": "cpu",
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

    bounds = (*topology.shape, 1, 1)[:3]
    # Hosts have 2x2 chips, unless it is said that there are fewer.
    options: dict[str, Any] = {"chips_per_host_bounds": bounds} if bounds[0] * bounds[1] * bounds[2] < 4 else {}
    try:
        found = topologies.get_topology_desc(platform=topology.chip.platform, topology_name=topology.name, **options).devices
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise DeviceError(f"--topology {topology.name}: {str(error).splitlines()[0]}: is twodeep[tpu] installed?") from error
    assert isinstance(found[0], jax.Device)
    return Mesh(np.array(found[:num_devices]), (AXIS,))
