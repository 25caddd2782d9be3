"""Which versions are installed, and whether they belong together: JAX's own metadata says which libtpu and plugins it wants."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.errors import DeviceError, EngineError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

TWODEEP, JAX, JAXLIB, LIBTPU = "twodeep", "jax", "jaxlib", "libtpu"
_NIGHTLY = "libtpu-nightly"  # the same library between releases
_CUDA = (12, 13)
_PLUGINS = tuple(f"jax-cuda{cuda}-{part}" for cuda in _CUDA for part in ("plugin", "pjrt"))
NAMES = (TWODEEP, JAX, JAXLIB, LIBTPU, _NIGHTLY, *_PLUGINS)


@dataclass(frozen=True, slots=True)
class Versions:
    """What is installed."""

    by_name: Mapping[str, str]  # of `NAMES`, those that are here
    wanted: tuple[str, ...] = ()  # the requirements of JAX, as its metadata has them
    libtpu_path: str = ""  # of TPU_LIBRARY_PATH: a library that comes from elsewhere, whose version nobody knows

    @property
    def has_libtpu(self) -> bool:
        """Whether JAX finds a library for TPUs."""
        return LIBTPU in self.by_name or _NIGHTLY in self.by_name or bool(self.libtpu_path)

    @property
    def cuda(self) -> int | None:
        """The CUDA that the plugin brings; None: there is no plugin."""
        return next((cuda for cuda in reversed(_CUDA) if f"jax-cuda{cuda}-plugin" in self.by_name), None)


def read_versions(environ: Mapping[str, str], path: Sequence[str] | None = None) -> Versions:
    """Looks at what is installed on `path` (where this process imports from)."""
    where = list(sys.path if path is None else path)
    found: dict[str, Distribution] = {}
    for name in NAMES:
        if (distribution := next(iter(distributions(name=name, path=where)), None)) is not None:
            found[name] = distribution
    wanted = tuple(found[JAX].requires or ()) if JAX in found else ()
    library = environ.get("TPU_LIBRARY_PATH", "")
    elsewhere = library if library and Path(library).is_file() and not _is_installed(library) else ""
    return Versions({name: found[name].version for name in NAMES if name in found}, wanted, elsewhere)


def obstacles_of_versions(versions: Versions, device: str) -> list[EngineError]:
    """What keeps JAX from the device, each in a sentence. Pure."""
    match device:
        case "tpu":
            return _of_libtpu(versions)
        case "cuda":
            return _of_plugins(versions)
    return []


def _of_libtpu(versions: Versions) -> list[EngineError]:
    if not versions.has_libtpu:
        return [DeviceError("--device tpu: libtpu is not installed: add twodeep[tpu], or choose --device cpu")]
    if versions.libtpu_path or LIBTPU not in versions.by_name:  # who brings another one knows why
        return []
    return _mismatches(versions, "tpu", (JAXLIB, LIBTPU))


def _of_plugins(versions: Versions) -> list[EngineError]:
    cuda = versions.cuda
    if cuda is None:
        return [DeviceError("--device cuda: JAX's CUDA plugin is not installed: add twodeep[cuda], or choose --device cpu")]
    plugin, runtime = f"jax-cuda{cuda}-plugin", f"jax-cuda{cuda}-pjrt"
    if runtime not in versions.by_name:
        return [DeviceError(f"--device cuda: {plugin} is installed, but {runtime} is not: add twodeep[cuda]")]
    if versions.by_name[runtime] != versions.by_name[plugin]:
        ours, theirs = versions.by_name[plugin], versions.by_name[runtime]
        return [
            DeviceError(f"--device cuda: {plugin} {ours} and {runtime} {theirs} do not belong together: add twodeep[cuda] again")
        ]
    return _mismatches(versions, f"cuda{cuda}", (JAXLIB, plugin))


def _mismatches(versions: Versions, extra: str, names: Sequence[str]) -> list[EngineError]:
    """What JAX's extra asks for against what is here. What it does not ask for belongs to another JAX."""
    jax = versions.by_name.get(JAX, "")
    flag = "--device " + extra.rstrip("0123456789")
    wanted = {requirement.name: requirement for requirement in _requirements(versions.wanted, extra)}
    found: list[EngineError] = []
    for name in names if versions.wanted else ():
        here, requirement = versions.by_name.get(name, ""), wanted.get(name)
        if requirement is None:
            found.append(DeviceError(f"{flag}: {name} {here} is installed, which is not for JAX {jax}: {_again(flag)}"))
        elif not requirement.specifier.contains(here, prereleases=True):
            wish = f"JAX {jax} wants {requirement.specifier}"
            found.append(DeviceError(f"{flag}: {name} {here} is installed, but {wish}: {_again(flag)}"))
    return found


def _requirements(lines: Sequence[str], extra: str) -> "list[Requirement]":
    from packaging.requirements import InvalidRequirement, Requirement  # 50 ms that only accelerators need

    found = []
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.marker is not None and "extra" in line and requirement.marker.evaluate({"extra": extra}):
            found.append(requirement)
    return found


def _again(flag: str) -> str:
    return f"`pip install -U 'twodeep[{flag.removeprefix('--device ')}]'` brings those that belong together"


def _is_installed(library: str) -> bool:
    """Whether it is the one of the package libtpu, whose import sets the variable."""
    return Path(library).parent.name == LIBTPU
