"""Reads model files as an engine does at its start, one after the other: where a file may crash or hang something, that is this."""

import resource
import struct
import sys
import tempfile
from pathlib import Path

from frontend.errors import InvalidRequest
from frontend.launcher.models import ModelFiles, examine_model
from frontend.server.text.chat import ChatTemplate
from frontend.server.text.tokenizer import load_tokenizer
from protocol.config import EngineConfig
from protocol.errors import ModelError
from tests.model_writer import write_huggingface

_MEMORY = 4 << 30  # bytes of address space: far above what small files need

NAMES = {
    "safetensors": "model.safetensors",
    "index": "model.safetensors.index.json",
    "tokenizer": "tokenizer.json",
    "settings": "tokenizer_config.json",
    "config": "config.json",
    "generation": "generation_config.json",
    "template": "chat_template.jinja",
}


def main() -> None:
    """Standard input: cases, each behind its length. Standard output: a line for each; empty where it was read or refused."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    with tempfile.TemporaryDirectory() as directory:
        while head := stdin.read(4):
            (size,) = struct.unpack("<I", head)
            stdout.write(_try(stdin.read(size), Path(directory)).encode("utf-8", "replace") + b"\n")
            stdout.flush()


def _try(case: bytes, directory: Path) -> str:
    kind, _, data = case.partition(b"\n")
    if kind.decode(errors="replace") not in ("gguf", *NAMES):
        return ""
    try:
        if kind == b"gguf":
            files = ModelFiles(str(directory / "model.gguf"), "gguf", ("model",))
            Path(files.path).write_bytes(data)
        else:
            files = ModelFiles(str(write_huggingface(directory / "model")), "huggingface", ("model",))
            for name in ("tokenizer_config.json", "generation_config.json", "chat_template.jinja", "model.safetensors.index.json"):
                (directory / "model" / name).unlink(missing_ok=True)
            (directory / "model" / NAMES[kind.decode()]).write_bytes(data)
        examine_model(files)
        tokenizer = load_tokenizer(EngineConfig(model_path=files.path, model_format=files.format, served_model_names=("model",)))
        tokenizer.encode("Hello <|end|> ab")
        template = ChatTemplate(tokenizer.chat_template, tokenizer.special.texts)
        template.render([{"role": "user", "content": "Hello"}])
    except (ModelError, InvalidRequest, MemoryError):
        return ""
    except BaseException as error:  # noqa: BLE001 - a panic of a library written in Rust is no Exception
        return f"{type(error).__name__}: {error}".replace("\n", " ")[:300]
    return ""


if __name__ == "__main__":
    main()
