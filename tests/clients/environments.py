"""Python environments of other people's clients, one each, so that what they need does not meet what the engine needs.

They are kept under `$XDG_CACHE_HOME/twodeep-clients` (`~/.cache`), by a hash of what is in them.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BUILD_LIMIT = 600  # seconds
COMPLETE = "complete"  # a file that the last step of a build leaves


@dataclass(frozen=True, slots=True)
class Environment:
    """What one client needs. `without`: packages that it names and does not use here, gigabytes of them in some cases.

    `by_pip`: packages that pip brings, whose configuration may know a smaller build of them. `known_as`: a distribution and the
    name under which its own code looks it up.
    """

    name: str
    requirements: tuple[str, ...]
    without: tuple[str, ...] = ()
    by_pip: tuple[str, ...] = ()
    known_as: tuple[str, str] | None = None

    def python(self) -> Path:
        """The interpreter; the environment is made when it is not there yet."""
        directory = _cache(self.name, (sys.version, repr(self)))
        python = directory / "bin" / "python"
        with _locked(directory) as complete:
            if not complete:
                overrides = directory.with_suffix(".overrides")
                overrides.write_text("".join(f"{name}; python_version < '3'\n" for name in self.without))
                run([uv(), "venv", "--quiet", "--clear", "--seed", "--python", sys.executable, directory])
                if self.by_pip:
                    run([python, "-m", "pip", "install", "--quiet", *self.by_pip])
                run([uv(), "pip", "install", "--quiet", "--python", python, "--override", overrides, *self.requirements])
                if self.known_as:
                    _rename(directory, *self.known_as)
                (directory / COMPLETE).touch()
        return python


@dataclass(frozen=True, slots=True)
class NodeEnvironment:
    """The same for Node.js."""

    name: str
    requirements: tuple[str, ...]

    def directory(self) -> Path:
        """Where `node_modules` lies."""
        directory = _cache(self.name, self.requirements)
        with _locked(directory) as complete:
            if not complete:
                directory.mkdir(parents=True, exist_ok=True)
                run(["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", directory, *self.requirements])
                (directory / COMPLETE).touch()
        return directory


@contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Holds the lock of one environment; true when it is complete already. Several test runs may build at once."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with open(directory.with_suffix(".lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield (directory / COMPLETE).exists()


def uv() -> str:
    """The program that `uv run pytest` was started with, or one that is installed."""
    found = os.environ.get("UV") or shutil.which("uv")
    assert found, "uv makes the clients' environments: install it, or run the tests by `uv run pytest`"
    return found


def run(command: Sequence[str | Path], **environ: str) -> None:
    """Runs one step of a build; what it said is in the failure."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_LIMIT, env=os.environ | environ, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-4000:]}"


def _rename(directory: Path, distribution: str, name: str) -> None:
    (metadata,) = directory.glob(f"lib/python*/site-packages/{distribution.replace('-', '_')}-*.dist-info")
    version = metadata.name.removesuffix(".dist-info").partition("-")[2]
    copy = shutil.copytree(metadata, metadata.with_name(f"{name}-{version}+cpu.dist-info"))
    text = (copy / "METADATA").read_text()
    text = text.replace(f"Name: {distribution}", f"Name: {name}", 1).replace(f"Version: {version}", f"Version: {version}+cpu", 1)
    (copy / "METADATA").write_text(text)


def _cache(name: str, parts: Sequence[str]) -> Path:
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "twodeep-clients" / f"{name}-{digest}"
