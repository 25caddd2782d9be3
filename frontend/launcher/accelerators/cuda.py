"""The NVIDIA GPUs of this host, and the environment in which a process gets some of them."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from frontend.launcher.accelerators.host import Places, Process, numbered, open_files, why_not
from protocol.errors import ConfigError, DeviceError, EngineError

_OLDEST_DRIVER = {12: 525, 13: 580}  # by the CUDA that a plugin brings


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU whose device is here."""

    path: str
    name: str = ""  # as the driver calls it
    failure: str = ""  # why it cannot be opened, as the name of an error number
    holders: tuple[Process, ...] = ()  # who else has it open, as far as that is seen; several may


@dataclass(frozen=True, slots=True)
class CudaHost:
    """What is to be known of a host's GPUs."""

    gpus: tuple[Gpu, ...] = ()
    control: str = ""  # why /dev/nvidiactl cannot be opened
    driver: str = ""  # version of the kernel's module; "": not known
    windows: bool = False  # /dev/dxg: WSL, which has no device for each


def look_for_gpus(places: Places) -> CudaHost:
    """Reads what is to be read."""
    paths = numbered(places.dev, "nvidia")
    if not paths:
        return CudaHost(windows=(places.dev / "dxg").exists())
    names = _names(places)
    holders = open_files(paths, places).by_path
    gpus = [
        Gpu(str(path), names.get(path.name.removeprefix("nvidia"), ""), why_not(path, open_it=False), holders[str(path)])
        for path in paths
    ]
    return CudaHost(tuple(gpus), why_not(places.dev / "nvidiactl", open_it=False), _driver(places))


def visible_gpus(host: CudaHost, environ: Mapping[str, str]) -> list[str]:
    """What CUDA_VISIBLE_DEVICES names, or the numbers of all. What follows something that is none counts for nothing."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(number) for number in range(len(host.gpus) or host.windows)]
    names: list[str] = []
    for name in (part.strip() for part in visible.split(",")):
        if not name or name.startswith("-") or (name.isdigit() and host.gpus and int(name) >= len(host.gpus)):
            break
        names.append(name)
    return names


def share_out_gpus(host: CudaHost, workers: int, devices: int, environ: Mapping[str, str]) -> list[list[str]]:
    """The GPUs of each worker. Raises DeviceError when there are none, ConfigError when they do not suffice."""
    names, given = visible_gpus(host, environ), environ.get("CUDA_VISIBLE_DEVICES")
    if not names:
        reason = "there is no /dev/nvidia0" if given is None else f"CUDA_VISIBLE_DEVICES={given} names none"
        raise DeviceError(f"--device cuda: no GPU is here, {reason}: choose --device cpu")
    needed = workers * devices
    if needed > len(names):
        source = f"CUDA_VISIBLE_DEVICES={given} names {len(names)}" if given is not None else f"here are {len(names)}"
        raise ConfigError(f"--workers {workers} × --tensor-parallel-size {devices} needs {needed} GPUs, {source}")
    return [names[worker * devices : (worker + 1) * devices] for worker in range(workers)]


def obstacles_to_gpus(host: CudaHost, used: Sequence[str], cuda: int | None) -> list[EngineError]:
    """What keeps workers from using these GPUs, each in a sentence. cuda: the version that JAX's plugin brings. Pure."""
    if not host.gpus:
        # Names that CUDA_VISIBLE_DEVICES gives say nothing of what is here.
        return [] if host.windows else [DeviceError("--device cuda: there is no GPU here, no /dev/nvidia0: choose --device cpu")]
    found: list[EngineError] = []
    gpus = [host.gpus[int(name)] for name in used if name.isdigit() and int(name) < len(host.gpus)]
    for path, failure in [("/dev/nvidiactl", host.control), *((gpu.path, gpu.failure) for gpu in gpus)]:
        if failure == "ENOENT":
            found.append(DeviceError(f"--device cuda: {path} is not there: `nvidia-modprobe`, or --gpus all for a container"))
        elif failure:
            found.append(
                DeviceError(f"--device cuda: {path} may not be opened by this user ({failure}): give its group the device")
            )
    oldest = _OLDEST_DRIVER.get(cuda) if cuda is not None else None
    major = host.driver.partition(".")[0]
    if oldest is not None and major.isdigit() and int(major) < oldest:
        found.append(
            DeviceError(
                f"--device cuda: the NVIDIA driver is {host.driver}, and CUDA {cuda}, which JAX's plugin brings, needs {oldest} or "
                "later: update the driver"
            )
        )
    return found


def _names(places: Places) -> dict[str, str]:
    names: dict[str, str] = {}
    for file in sorted((places.proc / "driver/nvidia/gpus").glob("*/information")):
        with suppress(OSError):
            fields = dict(line.partition(":")[::2] for line in file.read_text().splitlines())
            names[fields.get("Device Minor", "").strip()] = fields.get("Model", "").strip()
    return names


def _driver(places: Places) -> str:
    with suppress(OSError):
        text = Path(places.proc / "driver/nvidia/version").read_text()
        if match := re.search(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)", text):
            return match[1]
    return ""
