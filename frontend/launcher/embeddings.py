"""How a model's embeddings are made: as its files have it, those of sentence-transformers among them, or as the operator says."""

import json
import reprlib
from pathlib import Path
from typing import Literal

from frontend.launcher.models import ModelFiles
from frontend.server.text.tokenizer_files import read_settings
from protocol.config import EmbeddingSettings
from protocol.errors import ModelError
from protocol.gguf_header import read_gguf_header
from protocol.params import Pooling

_MODES: dict[str, Pooling] = {"lasttoken": "last", "mean_tokens": "mean", "mean": "mean"}  # of sentence-transformers
_GGUF_TYPES: dict[int, Pooling | None] = {0: None, 1: "mean", 3: "last"}  # llama.cpp's `pooling_type`
_WAY_OUT = "--pooling last or --pooling mean sets that aside"
_KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")


def embedding_settings(choice: Literal["auto", Pooling], files: ModelFiles, *, matryoshka: bool | None = None) -> EmbeddingSettings:
    """`choice`: of --pooling; other than auto, it stands in place of what the files say of pooling. `matryoshka`: of that flag.

    Without a word in the files: the last token, normalised, as vLLM has it for decoders. Raises ModelError naming the file and what
    of it is not supported.
    """
    directory = Path(files.path)
    config = read_settings(directory / "config.json") if files.format == "huggingface" else {}
    sizes = _sizes(directory / "config.json", config.get("matryoshka_dimensions"))
    shortens = bool(sizes) or config.get("is_matryoshka") is True
    if choice != "auto":
        pooling, normalize = choice, True
    elif files.format == "gguf":
        pooling, normalize = _of_gguf(files.path), True
    else:
        pooling, normalize = _of_directory(directory)
    if matryoshka is not None:
        shortens = matryoshka
    return EmbeddingSettings(pooling, normalize, shortens, sizes if shortens else ())


def _of_directory(directory: Path) -> tuple[Pooling, bool]:
    """Pooling, and whether embeddings are normalised."""
    path = directory / "modules.json"
    modules = _modules(path)
    if not modules:
        return "last", True
    kinds = [kind for kind, _ in modules]
    if unknown := [kind for kind in kinds if kind not in _KNOWN_MODULES]:
        raise ModelError(f"{path}: embeddings that go through a {unknown[0]} are not supported: {_WAY_OUT}")
    where = next((folder for kind, folder in modules if kind == "Pooling"), None)
    if where is None:
        return "last", "Normalize" in kinds
    file = directory / where / "config.json"
    settings = read_settings(file)
    modes = [settings["pooling_mode"]] if isinstance(settings.get("pooling_mode"), str) else []
    modes += [key.removeprefix("pooling_mode_") for key, on in settings.items() if key.startswith("pooling_mode_") and on is True]
    if len(modes) != 1 or modes[0] not in _MODES:
        shown = " and ".join(map(str, modes)) or "nothing"
        raise ModelError(f"{file}: pooling of {shown} is not supported, only {' or '.join(dict.fromkeys(_MODES))}: {_WAY_OUT}")
    return _MODES[str(modes[0])], "Normalize" in kinds


def _modules(path: Path) -> list[tuple[str, str]]:
    """The kind of each module of sentence-transformers, and its folder; empty where there are none."""
    try:
        entries = json.loads(path.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error
    found = []
    for entry in entries if isinstance(entries, list) else [entries]:
        kind, folder = (entry.get("type"), entry.get("path")) if isinstance(entry, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(folder, str) or Path(folder).is_absolute() or ".." in Path(folder).parts:
            raise ModelError(f"{path}: {reprlib.repr(entry)} is no module with a type and a path")
        found.append((kind.rpartition(".")[2], folder))
    return found


def _of_gguf(path: str) -> Pooling:
    metadata = read_gguf_header(path).metadata
    key = f"{metadata.get('general.architecture')}.pooling_type"
    kind = metadata.get(key, 0)
    if not isinstance(kind, int) or kind not in _GGUF_TYPES:
        raise ModelError(f"{path}: {key} is {reprlib.repr(kind)}, only 1 (mean) and 3 (last) are supported: {_WAY_OUT}")
    return _GGUF_TYPES[kind] or "last"


def _sizes(path: Path, value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in value):
        raise ModelError(f"{path}: matryoshka_dimensions is {reprlib.repr(value)}, a list of numbers is wanted")
    return tuple(sorted(value))
