"""The C++ kernels' build: once per machine and source, whole or not at all, where nobody else can write, and never fatal."""

import ctypes
import errno
import logging
import os
import platform
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import pytest

from tests.tpu_worker.compiler import needs_compiler
from tpu_worker.platforms.cpu.native import build
from tpu_worker.platforms.cpu.processor import preferred, prefers_blocks

LIBRARIES = ("matmul", "blocks", "attention", "Q4_1")  # of kinds of blocks one


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that passes for a compiler: it logs each compilation and writes what it was given as a library."""
    script = tmp_path / "compiler"
    script.write_text(
        "#!/bin/sh\n"
        f'if [ "$1" = --version ]; then cat {tmp_path}/version; exit 0; fi\n'
        f'echo "$@" >> {tmp_path}/log\n'
        'for last; do :; done; echo library > "$last"\n'
    )
    script.chmod(0o755)
    (tmp_path / "version").write_text("1")
    monkeypatch.setenv("CXX", str(script))
    return tmp_path


def compilations(folder: Path) -> int:
    log = folder / "log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_compiles_once_for_a_source_and_a_compiler(compiler: Path) -> None:
    cache = compiler / "cache"
    first = build.build(cache, LIBRARIES)
    assert compilations(compiler) == len(LIBRARIES)
    assert build.build(cache, LIBRARIES) == first
    assert compilations(compiler) == len(LIBRARIES)
    (compiler / "version").write_text("2")
    assert set(build.build(cache, LIBRARIES).values()).isdisjoint(first.values())
    assert compilations(compiler) == 2 * len(LIBRARIES)


def test_the_key_names_the_cpu(compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = build.build(compiler / "cache", LIBRARIES)
    monkeypatch.setattr(build, "cpu_flags", lambda: frozenset({"another"}))
    assert set(build.build(compiler / "cache", LIBRARIES).values()).isdisjoint(here.values())


def test_nothing_is_left_of_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "fails"
    script.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "x.cc:1: error: no such luck" >&2\nexit 1\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    with pytest.raises(build.BuildError, match="no such luck"):
        build.build(tmp_path / "cache", LIBRARIES)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_an_error(compiler: Path) -> None:
    (compiler / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file"):
        build.build(compiler / "file" / "cache", LIBRARIES)


def test_a_full_disk_leaves_nothing_behind(compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        build.build(compiler / "cache", LIBRARIES)
    assert list((compiler / "cache").iterdir()) == []


def test_what_a_killed_compiler_left_goes_when_it_is_old(compiler: Path) -> None:
    for name, age in (("old", 3 * build.COMPILE_TIMEOUT_S), ("new", 0)):
        scratch = compiler / "cache" / f".build-{name}"
        scratch.mkdir(parents=True)
        (scratch / "partial.so").touch()
        os.utime(scratch, (time.time() - age,) * 2)
    build.build(compiler / "cache", ["matmul"])
    assert [path.name for path in (compiler / "cache").glob(".build-*")] == [".build-new"]


@pytest.mark.parametrize("named", ["", "/does/not/exist"])
def test_without_a_compiler_the_loss_is_said_and_nothing_breaks(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", named)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.warns(build.NativeUnavailableWarning, match="slower on the CPU.*Install a C\\+\\+ compiler"):
        assert not build.available.__wrapped__(*LIBRARIES)


@needs_compiler
def test_several_workers_may_compile_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        paths = set(threads.map(lambda _: build.build(tmp_path, ["probe"])["probe"], range(4)))
    assert list(tmp_path.iterdir()) == list(paths)  # one library, and no scratch files


@needs_compiler
@pytest.mark.parametrize("damage", ["empty", "cut short", "other bytes", "not whole by its own account"])
def test_a_damaged_library_is_compiled_again(damage: str, tmp_path: Path) -> None:
    path = build.build(tmp_path, ["probe"])["probe"]
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "cut short": whole[:-4096], "other bytes": b"\x7f" + whole}.get(damage, whole[:-32]))
    assert build.build(tmp_path, ["probe"]) == {"probe": path}
    assert path.read_bytes()[:-32] == whole[:-32]
    assert ctypes.CDLL(str(path)).twodeep_probe_read


@needs_compiler
def test_a_library_that_others_could_have_planted_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "home" / "twodeep" / "native"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CACHE_DIRECTORY", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    planted = build.build(cache, ["probe"])["probe"]
    cache.parent.chmod(0o777)
    with caplog.at_level(logging.WARNING):
        libraries = [build.load(["probe"])["probe"] for _ in range(2)]
    private = tmp_path / f"twodeep-cache-{os.geteuid()}" / "native"
    assert {Path(library._name).parent for library in libraries} == {private}
    assert [record.getMessage() for record in caplog.records] == [
        f"compiled kernels are kept in {private}: others may write to {cache.parent} (`chmod go-w` ends that)"
    ]
    cache.parent.chmod(0o755)
    assert build.load(["probe"])["probe"]._name == str(planted)
    private.chmod(0o777)
    cache.chmod(0o777)
    with pytest.raises(build.BuildError, match="others may write to .*/home.*; others may write to .*/twodeep-cache"):
        build.load(["probe"])


def test_amx_prefers_xla() -> None:
    assert preferred(frozenset({"avx2", "avx512f", "amx_bf16"})) == "xla"
    assert preferred(frozenset({"avx2", "avx512f"})) == "native"
    assert not prefers_blocks(frozenset({"avx2", "avx512f", "amx_bf16"}))


def test_blocks_are_kept_where_there_are_vectors() -> None:
    assert prefers_blocks(frozenset({"avx2"})) and not prefers_blocks(frozenset({"sse4_2"}))


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names processors of x86")
@pytest.mark.slow
@pytest.mark.parametrize("processor", ["x86-64", "haswell", "skylake-avx512", "cooperlake"])
def test_kernels_compile_for_other_processors_than_this_one(processor: str) -> None:
    """Each takes other branches of the sources: no vectors to speak of, AVX2, AVX-512, and bf16 dot products."""
    flags = [flag for flag in build.FLAGS if flag != "-march=native"]
    for name in build.LIBRARIES:
        command = [build.find_compiler(), *flags, f"-march={processor}", "-fsyntax-only", "-isystem", jax.ffi.include_dir()]
        command += build.source_of(name)
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=build.COMPILE_TIMEOUT_S)
        assert done.returncode == 0, done.stderr
