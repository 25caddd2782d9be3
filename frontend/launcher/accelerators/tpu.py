"""The TPU chips of this host, and the environment in which a process gets some of them.

What libtpu reads: TPU_VISIBLE_CHIPS are numbers of chips, counted from 0 over those whose devices are here; the bounds (x, y, z)
are the shape in which a process has its chips, and that of the processes which work together: of each by itself, 1,1,1. Processes
of one host have a port each.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from frontend.launcher.accelerators.host import (
    OpenFiles,
    Places,
    Process,
    lock_holder,
    locked_memory_limit,
    numbered,
    open_files,
    why_not,
)
from protocol.errors import ConfigError, DeviceError, EngineError

GIB = 1 << 30
_GOOGLE = "0x1ae0"  # its number among the makers of PCI devices
_SHAPES = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}  # of so many chips of a host
_SLICE_PORT, _METRICS_PORT = 8476, 8431  # of chip 0; what libtpu takes by default
# The least that a process must be able to pin: libtpu maps its buffers for transfers, which are larger, when it starts. Container
# engines and service managers have limits of 64 KiB to 8 MiB unless told otherwise.
_LEAST_LOCKED = 64 << 20


@dataclass(frozen=True, slots=True)
class ChipKind:
    """A generation of TPU."""

    name: str
    memory: int  # bytes of a chip
    devices: int = 1  # into which JAX divides a chip


V5E, V6E, V7X = ChipKind("v5e", 16 * GIB), ChipKind("v6e", 32 * GIB), ChipKind("v7x", 192 * GIB, 2)
# By the number of the PCI device.
_KINDS = {
    "0x0027": ChipKind("v3", 32 * GIB, 2),
    "0x005e": ChipKind("v4", 32 * GIB),
    "0x0062": ChipKind("v5p", 95 * GIB),
    "0x0063": V5E,
    "0x006f": V6E,
    "0x0076": V7X,
}
# By what Google calls a machine with them, where PCI is not seen.
_ACCELERATOR_TYPES = {"v5litepod": V5E, "v5e": V5E, "v6e": V6E, "tpu7x": V7X, "v7x": V7X}


@dataclass(frozen=True, slots=True)
class Chip:
    """A chip whose device is here."""

    path: str
    failure: str = ""  # why it cannot be opened, as the name of an error number
    holders: tuple[Process, ...] = ()  # who has it open, as far as that is seen


@dataclass(frozen=True, slots=True)
class TpuHost:
    """What is to be known of a host's TPU chips."""

    chips: tuple[Chip, ...] = ()  # as libtpu counts them
    visible: tuple[int, ...] = ()  # those that this engine may use
    kind: ChipKind | None = None  # of all of them; None: not known
    on_bus: int = 0  # chips that PCI shows
    container: str = ""  # why /dev/vfio/vfio cannot be opened, which all chips of VFIO need
    locked_memory: int | None = None  # bytes that may be pinned; None: no limit
    lock_holder: Process | None = None  # of libtpu's lock file
    lock_holder_is_seen: bool = True  # whether its open files are shown
    huge_pages: bool = True

    @property
    def devices_per_chip(self) -> int:
        """As JAX counts devices."""
        return self.kind.devices if self.kind is not None else 1

    @property
    def by_vfio(self) -> bool:
        """Whether the chips are reached through VFIO."""
        return any("/vfio/" in chip.path for chip in self.chips)


def look_for_tpus(places: Places, environ: Mapping[str, str]) -> TpuHost:
    """Reads what is to be read. Raises ConfigError for a variable of the environment that names no chips."""
    on_bus, groups, sees_bus = _on_bus(places)
    paths = _device_files(places.dev, groups) if on_bus or not sees_bus else []
    if not paths and not on_bus:
        return TpuHost()
    kind = on_bus[0] if on_bus else _kind_of(environ.get("TPU_ACCELERATOR_TYPE", ""))
    files = open_files(paths, places) if paths else OpenFiles({}, frozenset())
    vfio = bool(paths) and paths[0].parent != places.dev
    chips = tuple(Chip(str(path), why_not(path, open_it=vfio), files.by_path[str(path)]) for path in paths)
    holder = lock_holder(places.tpu_lock, places)
    return TpuHost(
        chips=chips,
        visible=_visible(environ, len(chips)),
        kind=kind,
        on_bus=len(on_bus),
        container=why_not(places.dev / "vfio" / "vfio", open_it=True) if vfio else "",
        locked_memory=locked_memory_limit(places),
        lock_holder=holder,
        lock_holder_is_seen=holder is None or holder.pid in files.seen,
        huge_pages=_text(places.sys / "kernel/mm/transparent_hugepage/enabled").startswith("[always]"),
    )


def share_out(host: TpuHost, workers: int, devices: int) -> list[tuple[int, ...]]:
    """The numbers of each worker's chips; devices: that each is to have. Raises ConfigError when they do not suffice.

    Where no chips are seen, as many are assumed as are wanted: that is for `obstacles_to_tpus` to say.
    """
    per_worker = -(-devices // host.devices_per_chip)
    needed, visible = workers * per_worker, host.visible or tuple(range(workers * per_worker))
    if needed > len(visible):
        each = f", each of {host.devices_per_chip} devices" if host.devices_per_chip > 1 else ""
        of = f" of the {len(host.chips)} that are here" if len(visible) < len(host.chips) else ""
        seen = f"TPU_VISIBLE_CHIPS names {len(visible)}{of}" if of else f"here are {len(visible)}"
        raise ConfigError(f"--workers {workers} × --tensor-parallel-size {devices} needs {needed} TPU chips{each}, {seen}")
    if per_worker not in _SHAPES and not (workers == 1 and per_worker == len(host.chips)):
        sizes = [size * host.devices_per_chip for size in _SHAPES]
        raise ConfigError(
            f"--tensor-parallel-size {devices}: a process can own 1, 2, 4 or 8 chips of a TPU host, or all of them: "
            f"give {', '.join(map(str, sizes[:-1]))} or {sizes[-1]}"
        )
    return [visible[worker * per_worker : (worker + 1) * per_worker] for worker in range(workers)]


def tpu_environ(host: TpuHost, chips: Sequence[int], environ: Mapping[str, str]) -> dict[str, str]:
    """What makes a process see these chips alone. Raises ConfigError when the launcher's own environment stands against it."""
    # libtpu would let one process at a time load it, unless a process says that it has some chips only, and takes 2,2,1 for all of
    # them. Who has which chip is asked of the kernel instead (`obstacles_to_tpus`); a chip opens for one process at a time anyway.
    variables = {"JAX_PLATFORMS": "tpu,cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    if len(chips) >= len(host.chips) > 0:
        return variables  # the whole host, in whatever shape it has
    if environ.get("TPU_VISIBLE_DEVICE_PATHS"):
        raise ConfigError("TPU_VISIBLE_DEVICE_PATHS is set, which libtpu prefers to the chips of each worker: unset it")
    shape, port = _SHAPES[len(chips)], _SLICE_PORT + chips[0]
    names = ("TPU_CHIPS_PER_PROCESS_BOUNDS", "TPU_CHIPS_PER_HOST_BOUNDS", "CHIPS_PER_HOST_BOUNDS")  # the latter of older libraries
    alone = ("TPU_PROCESS_BOUNDS", "TPU_HOST_BOUNDS", "HOST_BOUNDS")
    numbers = ",".join(map(str, chips))
    return {
        **variables,
        "TPU_VISIBLE_CHIPS": numbers,
        "TPU_VISIBLE_DEVICES": numbers,
        **dict.fromkeys(names, shape),
        **dict.fromkeys(alone, "1,1,1"),
        "TPU_PROCESS_PORT": str(port),
        "TPU_PROCESS_ADDRESSES": f"localhost:{port}",
        "CLOUD_TPU_TASK_ID": "0",
        "TPU_WORKER_ID": "0",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_RUNTIME_METRICS_PORTS": ",".join(str(_METRICS_PORT + chip) for chip in chips),
    }


def obstacles_to_tpus(host: TpuHost, used: Sequence[int]) -> list[EngineError]:
    """What keeps workers from using these chips, each in a sentence, the first one first. Pure."""
    if not host.chips:
        return [_absent(host)]
    chips = [host.chips[number] for number in used]
    found = [error for chip in chips if (error := _obstacle(chip, host)) is not None]
    if host.container not in ("", "EBUSY"):
        found.insert(0, DeviceError(f"--device tpu: /dev/vfio/vfio {_reason(host.container)}: {_way_out(host.container)}"))
    if not found and host.lock_holder is not None and not host.lock_holder_is_seen and not host.by_vfio:
        # Without VFIO nothing else tells whether another user's process has the chips.
        found.append(
            DeviceError(f"--device tpu: {host.lock_holder} of another user holds libtpu's lock, and so the TPU chips: end it")
        )
    if host.by_vfio and host.locked_memory is not None and host.locked_memory < _LEAST_LOCKED:
        found.append(
            DeviceError(
                f"--device tpu: processes may lock {_shown(host.locked_memory)} of memory, which is too little for the chips: "
                "`ulimit -l unlimited`, LimitMEMLOCK=infinity under systemd, --ulimit memlock=-1 for a container"
            )
        )
    return found


def remarks_on_tpus(host: TpuHost, devices: int) -> list[str]:
    """What an operator may want to know, though it stops nothing."""
    found = []
    if host.devices_per_chip > 1 and devices % host.devices_per_chip:
        found.append(
            f"--tensor-parallel-size {devices}: a {_kind_name(host)} chip has {host.devices_per_chip} devices, and belongs to one "
            f"worker: one of them has nothing to do in each worker; {devices + 1} uses all"
        )
    if not host.huge_pages and host.chips:
        found.append("transparent huge pages are off, so that the TPU starts more slowly: echo always > "
                     "/sys/kernel/mm/transparent_hugepage/enabled")  # fmt: skip
    return found


def _absent(host: TpuHost) -> EngineError:
    if host.on_bus:
        return DeviceError(
            f"--device tpu: this host has {host.on_bus} TPU chips ({_kind_name(host)}), but there is no /dev/vfio/0 and no "
            "/dev/accel0: hand the devices to the container (--privileged, or --device), or choose --device cpu"
        )
    return DeviceError("--device tpu: there is no TPU here, no /dev/vfio/0 and no /dev/accel0: choose --device cpu")


def _obstacle(chip: Chip, host: TpuHost) -> EngineError | None:
    if chip.holders:
        holders = " and ".join(map(str, chip.holders))
        return DeviceError(f"--device tpu: {chip.path} is held by {holders}: end it, or choose other chips with TPU_VISIBLE_CHIPS")
    if chip.failure == "EBUSY":
        lock = f"; libtpu's lock is held by {host.lock_holder}" if host.lock_holder is not None else ""
        return DeviceError(
            f"--device tpu: {chip.path} is held by another process, which this user may not see{lock}: "
            f"`sudo lsof {chip.path}` names it"
        )
    if chip.failure:
        return DeviceError(f"--device tpu: {chip.path} {_reason(chip.failure)}: {_way_out(chip.failure)}")
    return None


def _reason(failure: str) -> str:
    match failure:
        case "EACCES":
            return "may not be opened by this user"
        case "EPERM":
            return "may not be opened by this process (a control group forbids it)"
        case "ENOENT":
            return "is not there"
        case _:
            return f"cannot be opened ({failure})"


def _way_out(failure: str) -> str:
    match failure:
        case "EACCES":
            return "run as root, or give the user's group the device (chgrp, chmod g+rw, a udev rule)"
        case "EPERM":
            return "install-systemd --accelerator under systemd, --privileged or --device for a container"
        case "ENOENT":
            return "hand the devices to the container (--privileged, or --device), or load the module vfio-pci"
        case _:
            return "restart the machine if this stays"


def _on_bus(places: Places) -> tuple[list[ChipKind], set[str], bool]:
    """The chips that PCI shows, the IOMMU groups that they are in, and whether it shows anything."""
    kinds: list[ChipKind] = []
    groups: set[str] = set()
    devices = sorted((places.sys / "bus/pci/devices").glob("*"))
    for device in devices:
        if _text(device / "vendor") == _GOOGLE and (kind := _KINDS.get(_text(device / "device"))) is not None:
            kinds.append(kind)
            if (group := device / "iommu_group").is_symlink():
                groups.add(os.path.basename(os.readlink(group)))
    return kinds, groups, bool(devices)


def _device_files(dev: Path, groups: set[str]) -> list[Path]:
    """/dev/accel0, … (up to v4, and v5e) or /dev/vfio/0, … (later), of which other devices may have some."""
    if accel := numbered(dev, "accel"):
        return accel
    return [path for path in numbered(dev / "vfio", "") if not groups or path.name in groups]


def _visible(environ: Mapping[str, str], count: int) -> tuple[int, ...]:
    for name in ("TPU_VISIBLE_CHIPS", "TPU_VISIBLE_DEVICES"):
        if (given := environ.get(name)) is None:
            continue
        numbers = [part.strip() for part in given.split(",") if part.strip()]
        if not numbers or any(not n.isascii() or not n.isdigit() or (count and int(n) >= count) for n in numbers):
            raise ConfigError(
                f"{name}={given}: numbers of TPU chips are wanted, with commas between, from 0 to {max(count, 1) - 1}"
            )
        return tuple(dict.fromkeys(int(n) for n in numbers))
    return tuple(range(count))


def _kind_of(accelerator_type: str) -> ChipKind | None:
    return _ACCELERATOR_TYPES.get(accelerator_type.partition("-")[0].lower())


def _kind_name(host: TpuHost) -> str:
    return host.kind.name if host.kind is not None else "unknown"


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _shown(size: int) -> str:
    return f"{size >> 10} KiB" if size < 1 << 20 else f"{size >> 20} MiB"
