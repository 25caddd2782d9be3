"""Directories that look like hosts with accelerators."""

import os
from pathlib import Path

from frontend.launcher.accelerators.host import Places

PCI = {"v5e": "0x0063", "v6e": "0x006f", "v7x": "0x0076"}
UNLIMITED = "unlimited"


class FakeHost:
    """What the kernel would show of a host, below one directory."""

    def __init__(self, root: Path) -> None:
        self.places = Places(root / "dev", root / "proc", root / "sys", root / "libtpu_lockfile")
        for directory in (self.places.dev, self.places.proc / "self", self.places.sys / "bus/pci/devices"):
            directory.mkdir(parents=True)
        (self.places.sys / "kernel/mm/transparent_hugepage").mkdir(parents=True)
        self.huge_pages("[always] madvise never")
        self.locked_memory(UNLIMITED)
        (self.places.proc / "meminfo").write_text("MemTotal: 16000000 kB\nMemFree: 1 kB\nMemAvailable: 8000000 kB\n")
        self.device("0x8086", "0x1234")  # something else is on every bus

    def device(self, vendor: str, device: str, group: str = "") -> None:
        """A device on the PCI bus."""
        bus = self.places.sys / "bus/pci/devices"
        place = bus / f"0000:00:{len(list(bus.iterdir())):02x}.0"
        place.mkdir()
        (place / "vendor").write_text(f"{vendor}\n")
        (place / "device").write_text(f"{device}\n")
        if group:
            (place / "iommu_group").symlink_to(f"../../../../kernel/iommu_groups/{group}")

    def tpu(self, kind: str, count: int, *, first: int = 0) -> "FakeHost":
        """Chips that are reached through VFIO, in IOMMU groups from `first` on."""
        vfio = self.places.dev / "vfio"
        vfio.mkdir()
        (vfio / "vfio").touch()
        for group in range(first, first + count):
            self.device("0x1ae0", PCI[kind], str(group))
            (vfio / str(group)).touch()
        return self

    def accel(self, kind: str, count: int) -> "FakeHost":
        """Chips that have devices of their own."""
        for chip in range(count):
            self.device("0x1ae0", PCI[kind])
            (self.places.dev / f"accel{chip}").touch()
        return self

    def gpus(self, count: int, driver: str = "580.65.06") -> "FakeHost":
        """NVIDIA GPUs with their driver."""
        (self.places.dev / "nvidiactl").touch()
        for gpu in range(count):
            (self.places.dev / f"nvidia{gpu}").touch()
            about = self.places.proc / f"driver/nvidia/gpus/0000:0{gpu}:00.0"
            about.mkdir(parents=True)
            (about / "information").write_text(f"Model: \t\t NVIDIA H100 80GB HBM3\nDevice Minor: \t {gpu}\n")
        text = f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Wed Jul 30\nGCC version:  gcc version 12.3.0\n"
        (self.places.proc / "driver/nvidia/version").write_text(text)
        return self

    def process(self, pid: int, name: str, *opened: str) -> None:
        """A process that has these files open, named relative to /dev."""
        descriptors = self.places.proc / str(pid) / "fd"
        descriptors.mkdir(parents=True)
        (descriptors.parent / "comm").write_text(f"{name}\n")
        for number, path in enumerate(opened):
            (descriptors / str(number)).symlink_to(self.places.dev / path)

    def lock(self, pid: int) -> None:
        """A process holds libtpu's lock."""
        self.places.tpu_lock.touch()
        file = self.places.tpu_lock.stat()
        place = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
        lines = [
            "1: FLOCK  ADVISORY  WRITE 1 fe:00:1 0 EOF",
            f"2: POSIX  ADVISORY  WRITE 12 ffff:ff:{file.st_ino} 0 EOF",  # of another file system
            f"3: POSIX  ADVISORY  WRITE {pid} {place} 0 EOF",
        ]
        (self.places.proc / "locks").write_text("\n".join(lines) + "\n")

    def locked_memory(self, limit: str, *, capabilities: int = 0) -> None:
        """What a process may pin: bytes, or "unlimited"."""
        head = "Limit                     Soft Limit           Hard Limit           Units"
        text = f"{head}\nMax locked memory         65536                {limit} bytes\n"
        (self.places.proc / "self/limits").write_text(text)
        (self.places.proc / "self/status").write_text(f"Name:\tx\nCapEff:\t{capabilities:016x}\n")

    def huge_pages(self, text: str) -> None:
        (self.places.sys / "kernel/mm/transparent_hugepage/enabled").write_text(text + "\n")


def install(place: Path, name: str, version: str, *requires: str) -> None:
    """A package of which only the metadata is there."""
    directory = place / f"{name.replace('-', '_')}-{version}.dist-info"
    directory.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {line}" for line in requires)]
    (directory / "METADATA").write_text("\n".join(lines) + "\n")


def install_jax(place: Path, **versions: str) -> Path:
    """JAX 0.10.2 and what it asks for; `versions` in place of the right ones, by names with _ for -; "" leaves a package out."""
    wishes = ["tpu", "cuda12", "cuda13"]
    asked = [f'jaxlib<=0.10.2,>=0.10.2; extra == "{extra}"' for extra in wishes]
    asked += ['libtpu==0.0.42.*; extra == "tpu"']
    asked += [f'jax-cuda{cuda}-plugin[with-cuda]<=0.10.2,>=0.10.2; extra == "cuda{cuda}"' for cuda in (12, 13)]
    install(place, "jax", "0.10.2", "jaxlib<=0.10.2,>=0.10.1", *asked)
    right = {"jaxlib": "0.10.2", "libtpu": "0.0.42.1", "jax_cuda13_plugin": "0.10.2", "jax_cuda13_pjrt": "0.10.2"}
    for name, version in (right | versions).items():
        if version:
            install(place, name.replace("_", "-"), version)
    return place


NOBODY = 65534
AS_ROOT = os.geteuid() == 0
