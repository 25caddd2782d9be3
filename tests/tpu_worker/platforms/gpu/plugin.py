"""JAX's CUDA plugin, with which programs are compiled for GPUs, here or not: `python -m tests.tpu_worker.platforms.gpu.plugin`.

It is XLA for GPUs with its compilers, 132 MB of download, and in an environment of its own, since JAX looks for GPUs wherever it is
installed. So it is fetched by this command only, and the tests that need it are left out without it.
"""

from pathlib import Path

import jax

from tests.clients.environments import Environment

COMMAND = "python -m tests.tpu_worker.platforms.gpu.plugin"


def packages() -> Environment:
    """Of the age of the JAX that runs here."""
    version = jax.__version__
    return Environment("cuda-plugin", (f"jax-cuda13-plugin=={version}", f"jax-cuda13-pjrt=={version}"))


def site_packages(python: Path) -> Path:
    """Where an environment with this interpreter has its packages."""
    (directory,) = python.parents[1].glob("lib/python*/site-packages")
    return directory


if __name__ == "__main__":
    print(site_packages(packages().python()))
