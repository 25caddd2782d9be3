"""Asks chips whether they answer: `python -m tpu_worker.probe DEVICE`, in the environment that a worker would have.

Opens the devices that JAX sees there, computes something on each of them, and writes what there is to say as one line of JSON. A
process of its own, started by `engine-launch --check`: a chip that is held or broken may say so late, with a crash, or never.
"""

import json
import sys
from typing import Any

from protocol.process import die_with_parent


def probe(device: str) -> dict[str, Any]:
    """What JAX sees: `devices`, each with its kind and its memory in bytes (None: not told), and `platform`, which driver answered.

    Raises RuntimeError, JAX's, where nothing answers.
    """
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_platforms", device)
    found = []
    for chip in jax.devices():
        total = jnp.sum(jax.device_put(jnp.ones(8, jnp.float32), chip))
        if float(total) != 8.0:
            raise RuntimeError(f"{chip} computes 8 × 1 = {float(total)}")
        statistics = chip.memory_stats() if device != "cpu" else None
        found.append({"kind": chip.device_kind, "memory": (statistics or {}).get("bytes_limit")})
    platform = str(jax.devices()[0].client.platform_version)
    return {"devices": found, "platform": platform.replace("\n", ", ")}


def main(device: str) -> int:
    """Writes the answer, or `error`; returns the exit code."""
    try:
        answer = probe(device)
    except Exception as error:  # noqa: BLE001 - whatever JAX or a driver raises is the answer
        answer = {"error": " ".join(str(error).split()) or type(error).__name__}
    print(json.dumps(answer), flush=True)
    return int("error" in answer)


if __name__ == "__main__":
    die_with_parent()
    sys.exit(main(sys.argv[1]))
