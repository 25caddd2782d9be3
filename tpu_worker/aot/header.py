"""What compiled programs depend on: where two workers agree in all of it, one can run what was compiled for the other."""

import functools
import hashlib
import os
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import msgspec

from protocol.config import EngineConfig
from protocol.model_families import families_from_outside
from tpu_worker.blueprint import Blueprint
from tpu_worker.mesh.layout import spec_of
from tpu_worker.platforms.cpu.native.build import cpu_flags
from tpu_worker.program import Compiler

# The distribution that compiles for each of JAX's platforms; on the CPU jaxlib does.
_PLUGINS = {"tpu": ("libtpu",), "gpu": ("jax-cuda13-pjrt", "jax-cuda12-pjrt"), "cuda": ("jax-cuda13-pjrt", "jax-cuda12-pjrt")}
_PACKAGES = ("tpu_worker", "protocol")
_OPTIONS = ("LIBTPU_INIT_ARGS", "XLA_FLAGS")  # variables that tell the compilers how
_OF_THE_LAYOUT = "--xla_force_host_platform_device_count"  # an option that only makes the devices, which are told otherwise
_DIGITS = 16


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. What has no short name is told by a digest."""

    device: str  # as JAX calls the kind; of the CPU, with what its processors can
    device_ids: tuple[int, ...]  # in the order of the mesh
    versions: dict[str, str]
    compiler_options: str
    model: str
    kernels: str  # the platform's name
    dtype: str  # that weights and cache are kept in, unless in fewer bits
    quantization: str
    cache: str  # what keys and values are kept as: its arrays may hold bits
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int  # tokens
    block_size: int  # tokens
    groups: str  # of the KV cache
    buckets: str
    weights: str  # their shapes, types and layout
    num_blocks: int  # of the KV cache
    state: str  # as `weights`, of what steps leave changed


def difference(saved: Mapping[str, Any], here: Header) -> str:
    """The first field in which a header that was saved, perhaps by another version, differs, with both values; empty: none does."""
    own = msgspec.json.decode(msgspec.json.encode(here))  # as what was saved was read
    for name, there, value in _pairs(saved, own):
        if there != value:
            return f"{name} is {_shown(there)} there and {_shown(value)} here"
    return ""


def _pairs(saved: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in dict.fromkeys((*own, *saved)):
        there: Any = saved.get(name)
        here: Any = own.get(name)
        if isinstance(there, dict) and isinstance(here, dict):  # versions
            for package in sorted({*there, *here}):
                yield f"version of {package}", there.get(package), here.get(package)
        else:
            yield name, there, here


def _shown(value: object) -> str:
    return "nothing" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def make_header(config: EngineConfig, blueprint: Blueprint, compiler: Compiler, num_blocks: int) -> Header:
    """What the programs of `compiler`, which is of `blueprint`, depend on. The chips need not be there."""
    devices = list(compiler.layout.mesh.devices.flat)
    platform = devices[0].platform
    return Header(
        device=devices[0].device_kind + (f", flags {_digest(*sorted(cpu_flags()))}" if platform == "cpu" else ""),
        device_ids=tuple(device.id for device in devices),
        versions=_versions(platform, blueprint),
        compiler_options=_compiler_options(),
        model=f"{blueprint.spec.architecture} of {len(blueprint.spec.layers)} layers {_digest(repr(compiler.model.spec))}",
        kernels=blueprint.platform.name,
        dtype=blueprint.platform.products.dtype,
        quantization=config.quantization,
        cache=blueprint.platform.attention.kept,
        max_num_seqs=blueprint.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=blueprint.max_model_len,
        block_size=blueprint.block_size,
        groups=_digest(repr(blueprint.groups)),
        buckets=" ".join(f"{bucket.tokens}x{bucket.rows}" for bucket in blueprint.buckets),
        weights=_digest_shapes(compiler.weights, len(devices)),
        num_blocks=num_blocks,
        state=_digest_shapes(compiler.state, len(devices)),
    )


def compiler_versions(platform: str) -> dict[str, str]:
    """Of JAX and of what compiles for a platform, as JAX names it, where they are installed."""
    names = ("jax", "jaxlib", *_PLUGINS.get(platform, ()))
    return {name: version for name in names if (version := _version(name)) is not None}


def _versions(platform: str, blueprint: Blueprint) -> dict[str, str]:
    versions = compiler_versions(platform)
    versions["twodeep"] = f"{_version('twodeep')} {source_digest()}"
    for family in families_from_outside():
        if family.architecture == blueprint.spec.architecture:
            versions["the model's family"] = family.distribution
    return versions


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def source_digest() -> str:
    """Of all that programs are made by: Python's and the kernels' sources."""
    root = Path(__file__).parents[2]
    paths = sorted(path for package in _PACKAGES for path in (root / package).rglob("*") if path.suffix in (".py", ".cc", ".h"))
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:_DIGITS]


def _compiler_options() -> str:
    said = [word for name in _OPTIONS for word in os.environ.get(name, "").split() if not word.startswith(_OF_THE_LAYOUT)]
    if precision := getattr(jax.config, "jax_default_matmul_precision", None):
        said.append(f"jax_default_matmul_precision={precision}")
    return " ".join(said) or "none"


def _digest_shapes(tree: Any, num_chips: int) -> str:
    """Of a pytree of shapes and types, and, on several chips, of how each array is laid out."""
    leaves = [f"{leaf.dtype}{list(leaf.shape)}{spec_of(leaf) if num_chips > 1 else ''}" for leaf in jax.tree.leaves(tree)]
    return _digest(str(jax.tree.structure(tree)), *leaves)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:_DIGITS]
