"""Which device the workers use, and which processors and chips each of them gets.

Decided without JAX: the environment that narrows a process to its chips must be set before JAX starts in it.
"""

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from protocol.config import Device, EngineConfig
from protocol.errors import ConfigError, DeviceError

DEVICES = Path("/dev")


ResolvedDevice = Literal["cpu", "tpu", "cuda", "sim"]

# The chips of one host lie in a grid; a process may own only these parts of it (x, y, z).
_TPU_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}


@dataclass(frozen=True, slots=True)
class Placement:
    """What one worker gets."""

    cpus: tuple[int, ...]  # processors; empty: all
    environ: dict[str, str]  # set over the launcher's own environment


def resolve_device(device: Device) -> tuple[ResolvedDevice, str]:
    """The device that `auto` stands for, and a remark for the operator (or "").

    An accelerator counts only when JAX's plugin for it is installed too. Raises DeviceError when one is asked for that has none.
    """
    if device == "tpu" and not _has_tpu_plugin():
        raise DeviceError("--device tpu: libtpu is not installed: add twodeep[tpu], or choose --device cpu")
    if device == "cuda" and not _has_cuda_plugin():
        raise DeviceError("--device cuda: JAX's CUDA plugin is not installed: add twodeep[cuda], or choose --device cpu")
    if device != "auto":
        return device, ""
    if _tpu_chips():
        if _has_tpu_plugin():
            return "tpu", ""
        return "cpu", "TPU chips are here, but libtpu is not installed: add twodeep[tpu]; using the CPU"
    if any(DEVICES.glob("nvidia[0-9]*")):
        if _has_cuda_plugin():
            return "cuda", ""
        return "cpu", "an NVIDIA GPU is here, but JAX's CUDA plugin is not installed: add twodeep[cuda]; using the CPU"
    return "cpu", ""


def place_workers(config: EngineConfig, environ: Mapping[str, str]) -> list[Placement]:
    """One Placement per worker: worker i gets the chips [i * T, (i + 1) * T), or its share of the processors on the CPU.

    As far as that can be seen from outside: raises ConfigError when the host's visible chips do not suffice, DeviceError when there
    are none.
    """
    chips = [range(i * config.tensor_parallel_size, (i + 1) * config.tensor_parallel_size) for i in range(config.workers)]
    match config.device:
        case "tpu":
            return [Placement((), _tpu_environ(config, part)) for part in chips]
        case "cuda":
            return [Placement((), _cuda_environ(config, part, environ)) for part in chips]
        case "sim":
            return [Placement((), {"JAX_PLATFORMS": "cpu"}) for _ in chips]
        case _:
            variables = _cpu_environ(config, environ)
            return [Placement(cpus, variables) for cpus in split_processors(_processors(), config.workers)]


def split_processors(processors: list[int], workers: int) -> list[tuple[int, ...]]:
    """Neighbouring processors in shares that differ by one at most; with more workers than processors, one each in turn."""
    count = len(processors)
    if workers >= count:
        return [(processors[worker % count],) for worker in range(workers)]
    return [tuple(processors[worker * count // workers : (worker + 1) * count // workers]) for worker in range(workers)]


def _processors() -> list[int]:
    """The processors this process may use, siblings of one core beside each other, cores of one package together."""

    def place(cpu: int) -> tuple[int, int, int]:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            return int((topology / "physical_package_id").read_text()), int((topology / "core_id").read_text()), cpu
        except (OSError, ValueError):
            return 0, cpu, cpu  # no topology in some containers: then the number has to do

    return sorted(os.sched_getaffinity(0), key=place)


def _has_tpu_plugin() -> bool:
    return importlib.util.find_spec("libtpu") is not None


def _has_cuda_plugin() -> bool:
    return any(importlib.util.find_spec(f"jax_cuda{version}_plugin") is not None for version in (12, 13))


def _tpu_chips() -> int:
    """Chips that the kernel shows: /dev/accel0, … (up to v4 and v5e) or /dev/vfio/0, … (later)."""
    return len(list(DEVICES.glob("accel[0-9]*"))) or len(list(DEVICES.glob("vfio/[0-9]*")))


def _cpu_environ(config: EngineConfig, environ: Mapping[str, str]) -> dict[str, str]:
    """Processors are one device to JAX unless it is told, before it starts, to make several of them."""
    variables = {"JAX_PLATFORMS": "cpu"}
    if config.tensor_parallel_size > 1:
        devices = f"--xla_force_host_platform_device_count={config.tensor_parallel_size}"
        variables["XLA_FLAGS"] = f"{environ.get('XLA_FLAGS', '')} {devices}".strip()
    return variables


def _tpu_environ(config: EngineConfig, chips: range) -> dict[str, str]:
    size, needed, present = config.tensor_parallel_size, config.workers * config.tensor_parallel_size, _tpu_chips()
    if present and needed > present:
        raise ConfigError(
            f"--workers {config.workers} × --tensor-parallel-size {size} needs {needed} TPU chips, here are {present}"
        )
    environ = {"JAX_PLATFORMS": "tpu,cpu"}
    if config.workers == 1 and size == present:
        return environ  # the whole host, in whatever shape it has
    if size not in _TPU_BOUNDS:
        raise ConfigError(f"--tensor-parallel-size {size}: a process can own 1, 2, 4 or 8 chips of a TPU host, or all of them")
    return environ | {
        "TPU_VISIBLE_CHIPS": ",".join(map(str, chips)),
        "TPU_CHIPS_PER_PROCESS_BOUNDS": _TPU_BOUNDS[size],
        "TPU_PROCESS_BOUNDS": "1,1,1",
    }


def _cuda_environ(config: EngineConfig, chips: range, environ: Mapping[str, str]) -> dict[str, str]:
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",") if name.strip()]
    else:
        names = [str(index) for index in range(len(list(DEVICES.glob("nvidia[0-9]*"))))]
    needed = config.workers * config.tensor_parallel_size
    if not names:
        reason = "there is no /dev/nvidia0" if visible is None else f"CUDA_VISIBLE_DEVICES={visible} names none"
        raise DeviceError(f"--device cuda: no GPU is here, {reason}")
    if needed > len(names):
        source = f"CUDA_VISIBLE_DEVICES={visible} names {len(names)}" if visible is not None else f"here are {len(names)}"
        raise ConfigError(
            f"--workers {config.workers} × --tensor-parallel-size {config.tensor_parallel_size} needs {needed} GPUs, {source}"
        )
    return {"JAX_PLATFORMS": "cuda,cpu", "CUDA_VISIBLE_DEVICES": ",".join(names[chip] for chip in chips)}
