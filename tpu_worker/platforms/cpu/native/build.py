"""Compiles the C++ kernels once per machine and source, and loads them.

A library is run, so it is kept only where nobody else can put one, and ends in a digest of the rest: what a full disk, a crash or a
fault left of it is compiled again. The loader of ELF files reads nothing behind their last section.
"""

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from types import MappingProxyType

import jax

from protocol.cache_directory import default_cache, private_directory, temporary_cache

_LOG = logging.getLogger(__name__)

SOURCES = Path(__file__).parent
# Kinds of blocks that weights may stay in: ggml's and, behind them, those of `weights.scaled_blocks`. Each has a library, so that
# only those are compiled that a model has.
KINDS = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "MXFP4"),
    *("INT4_32", "INT4_128", "INT8_32", "INT8_128", "FP8_32", "FP8_128"),
)
FLOAT32 = "_float32"  # ends the names of libraries, and of their custom calls, that keep in f32 what the others keep in bf16
# Of each library, which is a .cc file, the custom calls; those of KINDS are made of one file and have none.
LIBRARIES: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "matmul": ("twodeep_linear", "twodeep_experts", "twodeep_scores", "twodeep_greedy", "twodeep_pick", "twodeep_mask"),
        "blocks": ("twodeep_linear_blocks", "twodeep_experts_blocks"),
        "attention": ("twodeep_attend", "twodeep_reserve"),
        f"matmul{FLOAT32}": ("twodeep_linear", "twodeep_experts"),  # the rest of matmul is the same for both
        f"blocks{FLOAT32}": ("twodeep_linear_blocks", "twodeep_experts_blocks"),  # which leave inputs as they are
        f"attention{FLOAT32}": ("twodeep_attend", "twodeep_reserve"),
        **dict.fromkeys(KINDS, ()),
        **dict.fromkeys((f"{kind}{FLOAT32}" for kind in KINDS), ()),
    }
)
FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-DNDEBUG",
    "-Wno-psabi",
    "-fPIC",
    "-shared",
)
# Far above the two or three seconds that it takes: a compiler that hangs must not hang the engine's start.
COMPILE_TIMEOUT_S = 120
_COMPILERS = 8  # at once: each takes a hundred megabytes
_SCRATCH = ".build-"
_DIGEST = "sha256"


class BuildError(Exception):
    """The kernels could not be compiled or loaded; `str(error)` says why."""


class NativeUnavailableWarning(UserWarning):
    """The engine runs without its C++ kernels, and slower."""


def find_compiler() -> str:
    """The path of `$CXX`, or of the first C++ compiler on the PATH. Raises BuildError if there is none."""
    named = os.environ.get("CXX")
    for name in (named,) if named else ("g++", "clang++", "c++"):
        if path := shutil.which(name):
            return path
    raise BuildError(f"$CXX names no program: {named}" if named else "no C++ compiler on the PATH (g++ or clang++)")


def cpu_flags() -> frozenset[str]:
    """The instruction sets of this CPU, as the kernel names them; empty where it does not say."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return frozenset(value.split())
    return frozenset()


def _key(compiler: str) -> str:
    """Names a build: whatever changes it, changes this."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False, timeout=COMPILE_TIMEOUT_S).stdout
    digest = hashlib.sha256()
    for path in sorted(p for p in SOURCES.iterdir() if p.suffix in (".cc", ".h")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    facts = (compiler, *FLAGS, metadata.version("jaxlib"), platform.machine(), platform.processor(), *sorted(cpu_flags()))
    digest.update(version + "\0".join(facts).encode())
    return digest.hexdigest()[:24]


def source_of(name: str) -> list[str]:
    """What the compiler is told to make a library of."""
    plain, exact = name.removesuffix(FLOAT32), ["-DTWODEEP_FLOAT32"] if name.endswith(FLOAT32) else []
    if plain in KINDS:
        return [*exact, f"-DTWODEEP_KIND={plain}", str(SOURCES / "block_kind.cc")]
    return [*exact, str(SOURCES / f"{plain}.cc")]


def _compile(compiler: str, name: str, target: Path) -> None:
    """Writes the library `target`, whole or not at all, whoever else writes it at the same time."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=_SCRATCH) as scratch:
        library = Path(scratch, target.name)
        command = [compiler, *FLAGS, "-isystem", jax.ffi.include_dir(), *source_of(name), "-o", str(library)]
        environ = {**os.environ, "TMPDIR": scratch}  # nobody else sees what the compiler hands to the linker
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMPILE_TIMEOUT_S, env=environ)
        if done.returncode != 0:
            errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
            raise BuildError(f"{compiler} failed on {name}.cc: {errors[0] if errors else f'exit code {done.returncode}'}")
        with library.open("r+b") as file:
            digest = hashlib.file_digest(file, _DIGEST).digest()
            file.write(digest)
            file.flush()
            os.fsync(file.fileno())
        library.chmod(0o600)
        library.replace(target)


def _is_whole(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        data = memoryview(path.read_bytes())
        size = hashlib.new(_DIGEST).digest_size
        return hashlib.new(_DIGEST, data[:-size]).digest() == data[-size:]
    return False


def _sweep(cache: Path) -> None:
    """Removes what compilers that were killed have left."""
    for scratch in cache.glob(_SCRATCH + "*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - scratch.stat().st_mtime > 2 * COMPILE_TIMEOUT_S:
                shutil.rmtree(scratch, ignore_errors=True)


def build(cache: Path, names: Sequence[str]) -> dict[str, Path]:
    """Paths of the compiled libraries by name, compiling in parallel those that `cache` does not hold.

    Raises OSError when others could write to `cache`, or this user cannot, BuildError when the compiler is not there or fails.
    """
    compiler = find_compiler()
    cache = private_directory(cache)
    _sweep(cache)
    try:
        key = _key(compiler)
        paths = {name: cache / f"{name}-{key}.so" for name in names}
        missing = [name for name, path in paths.items() if not _is_whole(path)]
        with ThreadPoolExecutor(max_workers=min(len(names), _COMPILERS)) as threads:
            list(threads.map(lambda name: _compile(compiler, name, paths[name]), missing))
    except subprocess.SubprocessError as error:
        raise BuildError(str(error)) from error
    return paths


def load(names: Sequence[str]) -> dict[str, ctypes.CDLL]:
    """The libraries by name, compiled first if need be. Raises BuildError."""
    reasons: list[str] = []
    for cache in (default_cache(os.environ) / "native", temporary_cache() / "native"):
        try:
            paths = build(cache, names)
        except OSError as error:
            reasons.append(str(error))
            continue
        if reasons:
            _say(f"compiled kernels are kept in {cache}: {reasons[0]}")
        try:
            return {name: ctypes.CDLL(str(path)) for name, path in paths.items()}
        except OSError as error:
            raise BuildError(f"the compiled kernels do not load: {error}") from error
    raise BuildError(f"no directory for compiled kernels: {'; '.join(reasons)}")


@functools.cache
def _say(text: str) -> None:
    """Logs it once per process."""
    _LOG.warning(text)


@functools.cache
def available(*names: str) -> bool:
    """Whether these libraries can be had, compiled side by side if need be; warns, with the reason and what is lost, if not."""
    try:
        load(names)
    except BuildError as error:
        warnings.warn(
            f"running without the C++ kernels, several times slower on the CPU: {error}. Install a C++ compiler (g++ or clang++), "
            "or set CXX to one",
            NativeUnavailableWarning,
            stacklevel=2,
        )
        return False
    return True


@functools.cache
def library(name: str) -> ctypes.CDLL:
    """One of the libraries, its calls registered with XLA. Raises BuildError if it cannot be had."""
    loaded = load([name])[name]
    suffix = FLOAT32 if name.endswith(FLOAT32) else ""
    for symbol in LIBRARIES[name]:
        jax.ffi.register_ffi_target(symbol + suffix, jax.ffi.pycapsule(getattr(loaded, symbol)), platform="cpu")
    return loaded
