"""Imports go one way: protocol <- {frontend, scheduler_proc, tpu_worker}, and a few libraries live in one place only."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("protocol", "frontend", "scheduler_proc", "tpu_worker")

# library -> the only folders that may import it
HOMES = {
    "jax": ("tpu_worker",),
    "jaxlib": ("tpu_worker",),
    "safetensors": ("tpu_worker",),
    "zmq": ("protocol",),
    "starlette": ("frontend",),
    "httptools": ("frontend",),
    "prometheus_client": ("frontend/server/api",),
    "jinja2": ("frontend/server/text",),  # templates come with models, so one place sandboxes them
    "llguidance": ("scheduler_proc/grammar",),
    "matplotlib": ("frontend/aot",),
    "tokenizers": ("frontend/server/text",),
    # pickle runs what it reads; the others bring gigabytes or are what this engine stands in for
    **dict.fromkeys(("pickle", "dill", "cloudpickle", "marshal", "shelve", "torch", "transformers", "vllm"), ()),
}

# room of the frontend -> what it imports of other rooms. Files of no room (errors, messages, wire) are for all.
ROOMS: dict[str, tuple[str, ...]] = {
    "server": (),
    "client": (),
    # What must be so before an engine starts is looked at by the code that will need it; the four bring no library.
    "launcher": (
        "frontend.server.bind",
        "frontend.server.host_names",
        "frontend.server.ipc.listener",
        "frontend.server.text.tokenizer_files",
    ),
    "aot": ("frontend.launcher",),
    "bench": ("frontend.client",),
    "terminal": ("frontend.client",),
}

# what starts -> libraries that it must not wait for
HEAVY = (
    "jax",
    "gguf",
    "safetensors",
    "tokenizers",
    "jinja2",
    "starlette",
    "httptools",
    "uvloop",
    "rich",
    "psutil",
    "httpx",
    "prometheus_client",
)
BRINGS: dict[str, tuple[str, ...]] = {
    "frontend.aot.__main__": (),
    "frontend.client": (),
    "frontend.launcher.__main__": (),
    "frontend.launcher.preflight.gather": (),
    "frontend.server.__main__": ("tokenizers", "jinja2", "starlette", "httptools", "uvloop", "prometheus_client"),
    "frontend.bench.__main__": ("httptools", "uvloop"),
    "frontend.bench.trace.__main__": (),
    "frontend.terminal.chat.__main__": ("rich",),
    "frontend.terminal.story": (),
    "frontend.terminal.top.__main__": ("rich",),
    "scheduler_proc.__main__": (),
    "tpu_worker.__main__": (),  # the simulated device needs no JAX
    "tpu_worker.probe": (),  # dies with its launcher before JAX is there
}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import in the file, inside functions too."""
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import hides where it goes"
            yield node.lineno, node.module or ""


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_meet_in_protocol_only(package: str) -> None:
    others = set(PACKAGES) - {package, "protocol"}
    wrong = [
        f"{path}:{line}: {module}" for path in sources(package) for line, module in imports(path) if module.split(".")[0] in others
    ]
    assert sources(package)
    assert wrong == []


@pytest.mark.parametrize("package", PACKAGES)
def test_libraries_stay_where_they_belong(package: str) -> None:
    wrong = []
    for path in sources(package):
        place = path.relative_to(ROOT).as_posix()
        for line, module in imports(path):
            homes = HOMES.get(module.split(".")[0])
            if homes is not None and not any(place.startswith(home + "/") for home in homes):
                wrong.append(f"{place}:{line}: {module} belongs in {homes or 'no package'}")
    assert wrong == []


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_of_the_frontend_keep_to_themselves(room: str) -> None:
    wrong = []
    for path in sources(f"frontend/{room}"):
        for line, module in imports(path):
            package, _, place = module.partition(".")
            if package == "frontend" and place.partition(".")[0] in ROOMS.keys() - {room} and not module.startswith(ROOMS[room]):
                wrong.append(f"{path}:{line}: {module}")
    assert sources(f"frontend/{room}")
    assert wrong == []


def test_what_the_rooms_share_needs_none_of_them() -> None:
    for path in (ROOT / "frontend").glob("*.py"):
        assert [module for _, module in imports(path) if module.startswith(tuple(f"frontend.{room}" for room in ROOMS))] == []


@pytest.mark.parametrize("module", BRINGS)
def test_what_starts_brings_only_what_it_uses(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert loaded & set(HEAVY) <= set(BRINGS[module])
    if not module.startswith("frontend.bench"):
        assert [name for name in loaded if name.startswith("frontend.bench")] == []
