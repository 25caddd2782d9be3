"""Which device the workers use, and which processors and chips each of them gets.

Decided without JAX: the environment that narrows a process to its chips must be set before JAX starts in it.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from frontend.launcher.accelerators.cuda import CudaHost, look_for_gpus, obstacles_to_gpus, share_out_gpus
from frontend.launcher.accelerators.host import HERE, Places, Process, wait_for_end
from frontend.launcher.accelerators.tpu import TpuHost, look_for_tpus, obstacles_to_tpus, remarks_on_tpus, share_out, tpu_environ
from frontend.launcher.accelerators.versions import Versions, obstacles_of_versions, read_versions
from protocol.config import Device, EngineConfig
from protocol.errors import ConfigError, EngineError

ResolvedDevice = Literal["cpu", "tpu", "cuda", "sim"]

_ENDING = 5.0  # seconds in which a process that holds a chip may end by itself: one that was killed takes a moment


@dataclass(frozen=True, slots=True)
class Placement:
    """What one worker gets."""

    cpus: tuple[int, ...]  # processors; empty: all
    environ: dict[str, str]  # set over the launcher's own environment
    chips: tuple[str, ...] = ()  # by their numbers, or as CUDA_VISIBLE_DEVICES names them


@dataclass(frozen=True, slots=True)
class Host:
    """The accelerators of this host, and what is installed for them."""

    tpu: TpuHost
    cuda: CudaHost
    versions: Versions


def look_at_host(device: Device, environ: Mapping[str, str], places: Places | None = None) -> Host:
    """Reads what matters for the device. Raises ConfigError for a variable of the environment that names no chips."""
    places = HERE if places is None else places
    if device in ("cpu", "sim"):
        return Host(TpuHost(), CudaHost(), read_versions(environ))
    return Host(look_for_tpus(places, environ), look_for_gpus(places), read_versions(environ))


def resolve_device(device: Device, host: Host) -> tuple[ResolvedDevice, str]:
    """The device that `auto` stands for, and a remark for the operator (or "").

    An accelerator counts only when JAX's plugin for it is installed too. What is asked for by name stays: `obstacles` says whether
    it can be had.
    """
    if device != "auto":
        return device, ""
    if host.tpu.chips:
        if host.versions.has_libtpu:
            return "tpu", ""
        return "cpu", "TPU chips are here, but libtpu is not installed: add twodeep[tpu]; using the CPU"
    if host.cuda.gpus:
        if host.versions.cuda is not None:
            return "cuda", ""
        return "cpu", "an NVIDIA GPU is here, but JAX's CUDA plugin is not installed: add twodeep[cuda]; using the CPU"
    return "cpu", ""


def obstacles(config: EngineConfig, host: Host, environ: Mapping[str, str]) -> list[EngineError]:
    """What keeps the workers from their device, each in a sentence, what is to be mended first before the others. Pure."""
    match config.device:
        case "tpu" if not host.tpu.chips:
            return obstacles_to_tpus(host.tpu, ())
        case "cuda" if not host.cuda.gpus and (missing := obstacles_to_gpus(host.cuda, (), None)):
            return missing
    found = obstacles_of_versions(host.versions, config.device)
    try:
        used = [chip for placed in place_workers(config, environ, host) for chip in placed.chips]
    except EngineError as error:
        return [*found, error]
    if config.device == "tpu":
        found += obstacles_to_tpus(host.tpu, [int(chip) for chip in used])
    elif config.device == "cuda":
        found += obstacles_to_gpus(host.cuda, used, host.versions.cuda)
    return found


def remarks_on(config: EngineConfig, host: Host) -> list[str]:
    """What an operator should know of the chips, though it stops nothing."""
    here = config.tensor_parallel_size // max(1, len(config.hosts))
    return remarks_on_tpus(host.tpu, here) if config.device == "tpu" else []


def check_accelerators(config: EngineConfig, host: Host, environ: Mapping[str, str], *, places: Places | None = None) -> None:
    """Raises what stands first against using the device. Who holds a chip has a few seconds to end by itself: an engine that was
    killed may do so just now.
    """
    if (found := obstacles(config, host, environ)) and (holders := _holders(host)):
        wait_for_end(holders, _ENDING)
        found = obstacles(config, look_at_host(config.device, environ, places), environ)
    if found:
        raise found[0]


def place_workers(config: EngineConfig, environ: Mapping[str, str], host: Host | None = None) -> list[Placement]:
    """One Placement per worker: worker i gets the i-th share of the chips, or of the processors on the CPU.

    host: looked at unless given. Raises ConfigError when its visible chips do not suffice, DeviceError when it has no GPU.
    """
    host = look_at_host(config.device, environ) if host is None else host
    if config.hosts:
        return [_place_on_host(config, environ, host)]
    match config.device:
        case "tpu":
            shares = share_out(host.tpu, config.workers, config.tensor_parallel_size)
            return [Placement((), tpu_environ(host.tpu, chips, environ), tuple(map(str, chips))) for chips in shares]
        case "cuda":
            names = share_out_gpus(host.cuda, config.workers, config.tensor_parallel_size, environ)
            return [
                Placement((), {"JAX_PLATFORMS": "cuda,cpu", "CUDA_VISIBLE_DEVICES": ",".join(share)}, tuple(share))
                for share in names
            ]
        case "sim":
            return [Placement((), {"JAX_PLATFORMS": "cpu"}) for _ in range(config.workers)]
        case _:
            variables = _cpu_environ(config, environ)
            return [Placement(cpus, variables) for cpus in split_processors(_processors(), config.workers)]


def _place_on_host(config: EngineConfig, environ: Mapping[str, str], host: Host) -> Placement:
    """What this host's part of a worker over several hosts gets: an even share of its chips, and all processors."""
    share = msgspec.structs.replace(config, tensor_parallel_size=config.tensor_parallel_size // len(config.hosts), hosts=())
    names = ",".join(config.hosts)
    # The hosts talk with each other, and with no proxy.
    variables = {"no_grpc_proxy": ",".join(filter(None, (environ.get("no_grpc_proxy"), names)))}
    if config.device == "tpu":
        present, wanted = len(host.tpu.chips) * host.tpu.devices_per_chip, share.tensor_parallel_size
        if present and present != wanted:
            raise ConfigError(
                f"--tensor-parallel-size {config.tensor_parallel_size} over {len(config.hosts)} hosts is {wanted} of each, here "
                f"are {present}: a slice is used as a whole, so {present * len(config.hosts)} is wanted"
            )
        variables |= {"TPU_WORKER_HOSTNAMES": names, "TPU_WORKER_ID": str(config.host_rank)}
    (placed,) = place_workers(share, environ, host)
    return Placement(placed.cpus, placed.environ | variables, placed.chips)


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


def _holders(host: Host) -> set[Process]:
    return {process for chip in host.tpu.chips for process in chip.holders}


def _cpu_environ(config: EngineConfig, environ: Mapping[str, str]) -> dict[str, str]:
    """Processors are one device to JAX unless it is told, before it starts, to make several of them."""
    variables = {"JAX_PLATFORMS": "cpu"}
    if config.tensor_parallel_size > 1:
        devices = f"--xla_force_host_platform_device_count={config.tensor_parallel_size}"
        variables["XLA_FLAGS"] = f"{environ.get('XLA_FLAGS', '')} {devices}".strip()
    return variables
