"""JAX over several hosts."""

import os
import sys

import jax

from protocol.config import EngineConfig
from protocol.errors import DeviceError, describe
from protocol.host_pipes import coordinator_address

_SECONDS = 60  # to meet JAX's coordinator, for processes that have met each other before


def connect(config: EngineConfig, leader: str) -> None:
    """Makes the devices of all hosts JAX's, before it has looked at any. Raises DeviceError.

    leader: address of the first host. Its coordinator listens there and nowhere else.
    """
    address = coordinator_address(config, leader)
    jax.config.update("jax_check_proxy_envs", False)  # the launcher has excepted these hosts from any proxy
    jax.config.update("jax_enable_preemption_service", False)  # which takes SIGTERM for the end of the machine
    sys.stdout.flush()
    os.dup2(2, 1)  # Gloo writes about its connections to standard output, where nothing but the ready line belongs
    try:
        jax.distributed.initialize(
            address,
            len(config.hosts),
            config.host_rank,
            cluster_detection_method="deactivate",
            initialization_timeout=_SECONDS,
            coordinator_bind_address=address,
        )
    except RuntimeError as error:
        raise DeviceError(f"--hosts: JAX's coordinator at {address}: {describe(error)}") from error
