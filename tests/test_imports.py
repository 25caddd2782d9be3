"""Imports go one way: protocol <- {frontend, scheduler_proc, tpu_worker}, and a few libraries live in one place only."""

import ast
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
    "jinja2": ("frontend/server/text",),  # templates come with models, so one place sandboxes them
    "tokenizers": ("frontend/server/text",),
    # pickle runs what it reads; the others bring gigabytes or are what this engine stands in for
    **dict.fromkeys(("pickle", "dill", "cloudpickle", "marshal", "shelve", "torch", "transformers", "vllm"), ()),
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
