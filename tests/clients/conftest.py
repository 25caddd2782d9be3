"""One engine on the demo model for all clients, and its tokenizer as Hugging Face keeps it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from frontend.launcher.models import resolve_model
from frontend.server.text.gguf_tokenizer import build_from_gguf
from frontend.server.text.tokenizer_files import gguf_template
from protocol.gguf_header import read_gguf_header
from tests.integration.launching import SIMULATED, Engine, launch


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The demo model on the CPU."""
    with launch(tmp_path_factory.mktemp("clients"), "--device", "cpu") as engine:
        yield engine


@pytest.fixture(scope="session")
def quick_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The simulated device and a short context, for thousands of requests: most of them set no end to their outputs."""
    with launch(tmp_path_factory.mktemp("quick"), *SIMULATED, "--max-model-len", "256") as engine:
        yield engine


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's tokenizer, for clients that count tokens themselves."""
    directory = tmp_path_factory.mktemp("tokenizer")
    metadata = read_gguf_header(resolve_model("demo").path).metadata
    tokenizer, vocabulary = build_from_gguf(metadata)
    tokenizer.save(str(directory / "tokenizer.json"))
    eos = metadata["tokenizer.ggml.eos_token_id"]
    assert isinstance(eos, int)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": vocabulary[eos],
        "pad_token": vocabulary[eos],
        "chat_template": gguf_template(metadata),
        "model_max_length": 2048,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory
