"""Families of models that other installed distributions bring, found by their metadata: nothing of theirs is imported here.

A distribution names them as entry points of `GROUP`: the name is an architecture, as `architectures` of a config.json or
`general.architecture` of a GGUF file has it, and the object a `tpu_worker.models.family.Family`. What starts an engine, and what
runs a simulated device, knows by the name alone that somebody serves it; the worker imports the one that its model is of.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata

from protocol.errors import ModelError

GROUP = "twodeep.model_families"


@dataclass(frozen=True, slots=True)
class OutsideFamily:
    """An entry point: who serves an architecture."""

    architecture: str
    target: str  # "module:object"
    distribution: str  # name and version, for errors

    def __str__(self) -> str:
        return f"entry point {self.architecture!r} ({self.target}) of the distribution {self.distribution}"


def families_from_outside() -> tuple[OutsideFamily, ...]:
    """Those of all distributions on the module path, by architecture."""
    found = (
        OutsideFamily(point.name, point.value, f"{point.dist.name} {point.dist.version}" if point.dist is not None else "unknown")
        for point in metadata.entry_points(group=GROUP)
    )
    return tuple(sorted(found, key=lambda family: (family.architecture, family.distribution)))


def find_family(architecture: str, ours: Sequence[str], outside: Iterable[OutsideFamily]) -> OutsideFamily | None:
    """Who serves an architecture: None, if it is one of `ours` or nobody does.

    Raises ModelError when more than one does: which of them it is must not depend on the order of the module path.
    """
    claims = [family for family in outside if family.architecture == architecture]
    if claims and architecture in ours:
        raise ModelError(f"{claims[0]}: the engine serves {architecture} itself: uninstall the distribution, or have it renamed")
    if len(claims) > 1:
        raise ModelError(f"{claims[0]} and {claims[1]} both serve {architecture}: uninstall one of the distributions")
    return claims[0] if claims else None
