"""What a model's files say of its tokenizer and chat template, before either is built.

Free of the libraries that build them, so that the launcher can ask before it starts anything.
"""

import json
import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from frontend.server.text.splits import SPLITS
from protocol.errors import ModelError
from protocol.foreign_files import ENOUGH, kind_of, recognise
from protocol.gguf_header import Value

_OTHER_WAY = "use the model's Hugging Face directory"
_CONVERT = f"convert the model again with a newer llama.cpp, or {_OTHER_WAY}"
_NORMAL = 1  # the type of most tokens
_LARGEST_FILE = 1 << 24  # bytes, of a template or of settings


@dataclass(frozen=True, slots=True)
class GgufVocabulary:
    """Of a tokenizer of either kind that is read: byte-level BPE, split by the rule `pre`, or SentencePiece."""

    kind: Literal["gpt2", "llama"]
    tokens: list[str]
    types: list[int]  # of each token, as llama.cpp and SentencePiece number them; 1, a normal one, where the file does not say
    pre: str = ""
    merges: Sequence[str] = ()  # pairs with a space between
    scores: Sequence[float] = ()  # of each token; SentencePiece only


def gguf_vocabulary(metadata: dict[str, Value]) -> GgufVocabulary:
    """Raises ModelError naming the field, and the way out, when it is no tokenizer that is read from GGUF."""
    kind = metadata.get("tokenizer.ggml.model")
    if kind is None:
        raise ModelError(f"tokenizer.ggml.model is missing: {_OTHER_WAY}")
    if kind == "llama":
        tokens = _texts(metadata, "tokenizer.ggml.tokens")
        scores = metadata.get("tokenizer.ggml.scores")
        if not isinstance(scores, list) or not all(isinstance(score, (int, float)) and not math.isnan(score) for score in scores):
            raise ModelError(f"tokenizer.ggml.scores is {reprlib.repr(scores)}, a list of numbers is wanted: {_CONVERT}")
        if len(scores) != len(tokens):
            raise ModelError(f"tokenizer.ggml.scores holds {len(scores)} numbers for {len(tokens)} tokens: {_CONVERT}")
        return GgufVocabulary("llama", tokens, _types(metadata, len(tokens)), scores=[float(score) for score in scores])
    if kind != "gpt2":
        raise ModelError(
            f"tokenizer.ggml.model is {reprlib.repr(kind)}; byte-level BPE ('gpt2') and SentencePiece ('llama') are read from "
            f"GGUF: {_OTHER_WAY}"
        )
    pre = metadata.get("tokenizer.ggml.pre")
    if pre is None:
        raise ModelError(f"tokenizer.ggml.pre is missing, so it is not known how the model splits text: {_CONVERT}")
    if not isinstance(pre, str) or pre not in SPLITS:
        raise ModelError(f"tokenizer.ggml.pre is {reprlib.repr(pre)}, only {', '.join(SPLITS)} are supported: {_OTHER_WAY}")
    tokens = _texts(metadata, "tokenizer.ggml.tokens")
    return GgufVocabulary("gpt2", tokens, _types(metadata, len(tokens)), pre, _texts(metadata, "tokenizer.ggml.merges"))


def gguf_template(metadata: dict[str, Value]) -> str | None:
    """The chat template, if there is one. Raises ModelError when it is no text."""
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise ModelError(f"tokenizer.chat_template is {reprlib.repr(template)}, a text is wanted")
    return template


def tokenizer_file(directory: Path) -> Path:
    """Where a Hugging Face directory holds its tokenizer: its tokenizer.json, or SentencePiece's tokenizer.model where there is
    no other. Raises ModelError when it does not, or in a file of another kind.
    """
    path = directory / "tokenizer.json"
    try:
        if not path.is_file():
            if (directory / "tokenizer.model").is_file():
                return directory / "tokenizer.model"
            tekken = ", but a tekken.json, which is not read" if (directory / "tekken.json").is_file() else ""
            raise ModelError(
                f"{directory}: no tokenizer.json{tekken}: download it too, or write it with `save_pretrained` of a fast tokenizer"
            )
        with open(path, "rb") as file:
            head = file.read(ENOUGH)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    if not head.lstrip().startswith(b"{"):
        raise ModelError(f"{path}: not a tokenizer but {kind_of(head)}")
    return path


def read_settings(path: Path) -> dict[str, object]:
    """A JSON object; empty when the file is not there. Raises ModelError naming the file and what is wrong."""
    try:
        data = _read(path)
        value = json.loads(data)
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        kind = recognise(data[:ENOUGH])
        raise ModelError(f"{path}: no JSON to be read: {f'it is {kind}' if kind else error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: holds no JSON object")
    return value


def chat_template(directory: Path, settings: dict[str, object]) -> str | None:
    """The chat template of a Hugging Face directory, if it has one: a file of its own, or an entry of its tokenizer_config.json.

    Raises ModelError naming file and field.
    """
    path = directory / "chat_template.jinja"
    try:
        return _read(path).decode()
    except FileNotFoundError:
        pass
    except UnicodeDecodeError as error:
        raise ModelError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
    template, field = settings.get("chat_template"), f"{directory / 'tokenizer_config.json'}: chat_template"
    if isinstance(template, list):  # several by name; the others are for tools and retrieval
        named = {}
        for index, entry in enumerate(template):
            name = entry.get("name") if isinstance(entry, dict) else None
            if not isinstance(name, str):
                raise ModelError(f"{field}: entry {index} has the name {reprlib.repr(name)}, a text is wanted")
            named[name] = entry.get("template")
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise ModelError(f"{field} is {reprlib.repr(template)}, a text is wanted")
    return template


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST_FILE + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    if len(data) > _LARGEST_FILE:
        raise ModelError(f"{path}: more than {_LARGEST_FILE} bytes, no such file is so long")
    return data


def _texts(metadata: dict[str, Value], key: str) -> list[str]:
    value = metadata.get(key)
    if value is None:
        raise ModelError(f"{key} is missing: {_OTHER_WAY}")
    if not isinstance(value, list) or not value or not isinstance(value[0], str):
        raise ModelError(f"{key} is {reprlib.repr(value)}, a list of texts is wanted")
    return [str(item) for item in value]


def _types(metadata: dict[str, Value], count: int) -> list[int]:
    key = "tokenizer.ggml.token_type"
    value = metadata.get(key)
    if value is None:
        return [_NORMAL] * count
    if not isinstance(value, list) or not all(isinstance(item, int) for item in value):
        raise ModelError(f"{key} is {reprlib.repr(value)}, a list of numbers is wanted")
    if len(value) != count:
        raise ModelError(f"{key} holds {len(value)} numbers for {count} tokens: {_CONVERT}")
    return [int(item) for item in value]
