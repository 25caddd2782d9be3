"""What all tests share: the processor that they run on, or pass for, and the margins of their bounds."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.margins import Margins
from tests.processors import PROCESSORS, describe, flags_of, read_processor

_MARGINS = pytest.StashKey[Margins]()
_PATCH = pytest.StashKey[pytest.MonkeyPatch]()
_MOST_PROGRAMS = 8192  # that are kept; the tests compile about a thousand, and others when what they test has changed


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--processor", choices=tuple(PROCESSORS), help="compile the C++ kernels for this one, and pass for it")
    parser.addoption("--margins", type=Path, metavar="FILE", help="write the margins of bounds on errors there, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    processor: str | None = config.getoption("--processor")
    config.stash[_MARGINS] = Margins(processor or "here")
    # How long an example takes depends on what else the machine does.
    settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("untimed")
    # With libtpu installed JAX would look for TPUs first, in every process of every test.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    _keep_programs(config, processor)
    if processor is None:
        return
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_max_isa={PROCESSORS[processor].xla_isa}"
    from tpu_worker.platforms.cpu import processor as chosen_by
    from tpu_worker.platforms.cpu.native import build

    patch = config.stash[_PATCH] = pytest.MonkeyPatch()
    patch.setattr(build, "FLAGS", tuple(f"-march={processor}" if flag == "-march=native" else flag for flag in build.FLAGS))
    for module in (build, chosen_by):
        patch.setattr(module, "cpu_flags", lambda: flags_of(processor))


def _keep_programs(config: pytest.Config, passing_for: str | None) -> None:
    """What XLA compiled for one test is there for all others, in child processes too, and when the tests run again.

    XLA's name for a program follows from the program, its own version and its flags, and the directory's from the processor.
    """
    cache: pytest.Cache | None = getattr(config, "cache", None)  # there is none with `-p no:cacheprovider`
    if cache is None or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    name, flags = read_processor()
    key = hashlib.sha256(f"{passing_for} {name} {sorted(flags)}".encode()).hexdigest()[:16]
    directory = cache.mkdir(f"programs-{key}")
    if len(list(directory.iterdir())) > _MOST_PROGRAMS:
        shutil.rmtree(directory)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(directory)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def pytest_unconfigure(config: pytest.Config) -> None:
    if _PATCH in config.stash:
        config.stash[_PATCH].undo()


def pytest_report_header(config: pytest.Config) -> str:
    passing_for = config.getoption("--processor")
    return f"processor: {describe()}, {len(os.sched_getaffinity(0))} cores" + (f", as {passing_for}" if passing_for else "")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    margins = config.stash[_MARGINS]
    if path := config.getoption("--margins"):
        margins.write(path)
    if margins.table:
        terminalreporter.section("shares of their bounds that errors take; 1 would fail")
        for line in margins.lines():
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def margins(pytestconfig: pytest.Config) -> Margins:
    """Where tests check errors against bounds."""
    return pytestconfig.stash[_MARGINS]
