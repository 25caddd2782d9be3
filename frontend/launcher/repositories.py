"""Models of the Hugging Face hub: how they are named, and where a copy lies in the cache that `huggingface_hub` shares with others.

Nothing here reaches for the network, or imports what could.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from protocol.errors import ModelError
from protocol.safetensors_header import weight_files

_NAME = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_REPOSITORY = re.compile(rf"({_NAME})(?::([\w.-]+)|/(.+\.gguf))?", re.ASCII)
_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
_REVISION = re.compile(r"[\w.-]+(/[\w.-]+)*", re.ASCII)
_TOKENIZERS = ("tokenizer.json", "tokenizer.model")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What of a repository is asked for: its Hugging Face checkpoint, or a GGUF file by its quantisation or name."""

    repository: str  # owner/name
    revision: str  # branch, tag or commit
    quantization: str = ""  # as in owner/name:Q4_K_M
    file: str = ""  # as in owner/name/FILE.gguf
    weights: bool = True  # whether those of a checkpoint are needed

    @property
    def is_gguf(self) -> bool:
        """Whether a GGUF file is asked for."""
        return bool(self.quantization or self.file)


def parse_repository(model: str, revision: str = "main", *, weights: bool = True) -> Wanted | None:
    """None where this is no name of a repository. Raises ModelError on a revision that can be none."""
    found = _REPOSITORY.fullmatch(model)
    if found is None or ".." in model:
        return None
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise ModelError(f"--revision {revision}: a branch, a tag or a commit is wanted")
    if not found[3] and not found[2] and model.endswith(".gguf"):  # a path that is not there
        return None
    return Wanted(found[1], revision, found[2] or "", found[3] or "", weights)


def cache_directory(environ: Mapping[str, str], download_dir: str | None = None) -> Path:
    """Where `huggingface_hub` keeps what was downloaded."""
    home = Path(environ.get("HF_HOME") or Path(environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "huggingface")
    return Path(os.path.expanduser(download_dir or environ.get("HF_HUB_CACHE") or home / "hub")).absolute()


def folder_of(cache: Path, repository: str) -> Path:
    """Of one repository in the cache."""
    return cache / ("models--" + repository.replace("/", "--"))


def find_cached(cache: Path, wanted: Wanted) -> Path | None:
    """The directory, or (first) GGUF file, of a copy that is whole; None: something is missing."""
    folder = folder_of(cache, wanted.repository)
    try:
        named = _COMMIT.fullmatch(wanted.revision)
        commit = wanted.revision if named else (folder / "refs" / wanted.revision).read_text().strip()
        snapshot = folder / "snapshots" / commit
        if not _COMMIT.fullmatch(commit) or not snapshot.is_dir():
            return None
        if not wanted.is_gguf:
            whole = (snapshot / "config.json").is_file() and any((snapshot / name).is_file() for name in _TOKENIZERS)
            there = not wanted.weights or all(file.is_file() for file in weight_files(snapshot))
            return snapshot if whole and there else None
        names = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*.gguf") if path.is_file()]
        chosen = choose_gguf(names, wanted)
    except (ModelError, OSError, UnicodeDecodeError):
        return None
    part = _PART.search(PurePosixPath(chosen[0]).stem)
    return snapshot / chosen[0] if part is None or len(chosen) == int(part[2]) else None


def choose(names: Iterable[str], wanted: Wanted) -> list[str]:
    """The files of a repository that are needed, the small ones first: so whoever has the weights has the others, too.

    Raises ModelError when it holds no such model, naming what it holds.
    """
    names = sorted(names)
    if wanted.is_gguf:
        return choose_gguf(names, wanted)
    top = [name for name in names if "/" not in name]
    if "config.json" not in top:
        kinds = _quantizations(names)
        if kinds:
            raise ModelError(
                f"{wanted.repository} holds GGUF files only: name one, as in {wanted.repository}:{kinds[0]}; "
                f"there are {', '.join(kinds)}"
            )
        adapter = "; it is an adapter: merge it into its model" if "adapter_config.json" in top else ""
        raise ModelError(f"{wanted.repository} holds no model that is served here: config.json is missing{adapter}")
    others = [name for name in top if name.endswith((".json", ".jinja", "tokenizer.model")) and not name.startswith("consolidated")]
    # Of sentence-transformers: how embeddings are pooled.
    others += [name for name in names if name.count("/") == 1 and name.endswith("_Pooling/config.json")]
    if not wanted.weights:
        return others
    weights = [name for name in top if name.endswith(".safetensors") and not name.startswith("consolidated")]
    if not weights:
        pickled = (
            " but pickled ones, which could run any code" if any(name.endswith((".bin", ".pt", ".pth")) for name in top) else ""
        )
        raise ModelError(
            f"{wanted.repository} holds no safetensors weights{pickled}: "
            "convert it with `save_pretrained`, or take another --revision"
        )
    return others + weights


def choose_gguf(names: Iterable[str], wanted: Wanted) -> list[str]:
    """The parts of the GGUF file that is asked for, in order. Raises ModelError when there is none, naming those that are there."""
    files = sorted(name for name in names if name.endswith(".gguf") and not PurePosixPath(name).name.startswith("mmproj"))
    if wanted.file:
        stem = _PART.sub("", wanted.file.removesuffix(".gguf"))
        found = [name for name in files if name == wanted.file or _whole(name) == stem]
        if wanted.file in found and not _PART.search(wanted.file.removesuffix(".gguf")):
            found = [wanted.file]
    else:
        kind = re.compile(rf"(?:^|[./_-]){re.escape(wanted.quantization)}(?:$|/)", re.IGNORECASE)
        matching = [name for name in files if kind.search(_whole(name))]
        shortest = min((_whole(name) for name in matching), key=lambda name: (len(name), name), default="")
        found = [name for name in matching if _whole(name) == shortest]
    if not found:
        asked = wanted.file or wanted.quantization
        shown = ", ".join(_quantizations(files) if wanted.quantization else files[:8]) or "none"
        raise ModelError(f"{wanted.repository} holds no GGUF file {asked}; there are: {shown}")
    return found


def _whole(name: str) -> str:
    """A file's name without extension and number of its part."""
    return _PART.sub("", name.removesuffix(".gguf"))


def _quantizations(names: Iterable[str]) -> list[str]:
    kinds = (re.search(r"[./_-]((?:UD-)?I?Q\d\w*|BF16|F16|F32|MXFP4\w*)$", _whole(name), re.IGNORECASE) for name in names)
    return sorted({kind[1] for kind in kinds if kind is not None})
