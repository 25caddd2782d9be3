import pytest

from frontend.launcher.models import resolve_model
from frontend.server.text.tokenizer import Tokenizer, load_tokenizer
from protocol.config import EngineConfig
from protocol.model_files import read_model_facts
from scheduler_proc.grammar.tokens import Tokens


@pytest.fixture(scope="session")
def config() -> EngineConfig:
    """Of the demo model, on the simulated device."""
    files = resolve_model("demo")
    return EngineConfig(model_path=files.path, model_format=files.format, served_model_names=files.names, device="sim")


@pytest.fixture(scope="session")
def tokenizer(config: EngineConfig) -> Tokenizer:
    return load_tokenizer(config)


@pytest.fixture(scope="session")
def vocab_size(config: EngineConfig) -> int:
    return read_model_facts(config.model_path, config.model_format).vocab_size


@pytest.fixture(scope="session")
def tokens(tokenizer: Tokenizer, vocab_size: int) -> Tokens:
    return Tokens(tokenizer.vocabulary(), vocab_size)
