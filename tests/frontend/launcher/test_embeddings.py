"""How embeddings are made, as a model's files say it."""

import json
from pathlib import Path

import pytest

from frontend.launcher.embeddings import embedding_settings
from frontend.launcher.models import ModelFiles
from frontend.launcher.repositories import choose, parse_repository
from protocol.config import EmbeddingSettings
from protocol.errors import ModelError
from tests.model_writer import write_gguf, write_huggingface

_TYPES = "sentence_transformers.models."
_WHOLE = ("Transformer", "Pooling", "Normalize")


def model(directory: Path, pooling: dict[str, object] | None, *kinds: str, **config: object) -> ModelFiles:
    """A directory as sentence-transformers leaves it, with these modules."""
    write_huggingface(directory, **config)  # type: ignore[arg-type]
    paths = [f"{index}_{kind}" if index else "" for index, kind in enumerate(kinds)]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": _TYPES + kind}
        for index, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    if kinds:
        (directory / "modules.json").write_text(json.dumps(modules))
    if pooling is not None:
        (directory / "1_Pooling").mkdir()
        (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return ModelFiles(str(directory), "huggingface", ("m",))


@pytest.mark.parametrize(
    ("pooling", "kinds", "expected"),
    [
        (None, (), EmbeddingSettings("last", True)),
        ({"pooling_mode_lasttoken": True, "pooling_mode_cls_token": False}, _WHOLE, EmbeddingSettings("last", True)),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}, _WHOLE[:2], EmbeddingSettings("mean", False)),
        ({"pooling_mode": "mean"}, _WHOLE, EmbeddingSettings("mean", True)),
        (None, ("Transformer", "Normalize"), EmbeddingSettings("last", True)),
    ],
)
def test_as_sentence_transformers_have_it(
    tmp_path: Path, pooling: dict[str, object] | None, kinds: tuple[str, ...], expected: EmbeddingSettings
) -> None:
    assert embedding_settings("auto", model(tmp_path, pooling, *kinds)) == expected


@pytest.mark.parametrize(
    ("pooling", "kinds", "message"),
    [
        ({"pooling_mode_cls_token": True}, ("Transformer", "Pooling"), r"1_Pooling/config\.json: pooling of cls_token"),
        (
            {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True},
            ("Transformer", "Pooling"),
            "max_tokens and mean_tokens",
        ),
        ({}, ("Transformer", "Pooling"), "pooling of nothing"),
        ({"pooling_mode_mean_tokens": True}, ("Transformer", "Pooling", "Dense"), r"modules\.json: .* a Dense are not supported"),
    ],
)
def test_what_is_not_supported_is_named_and_can_be_set_aside(
    tmp_path: Path, pooling: dict[str, object], kinds: tuple[str, ...], message: str
) -> None:
    files = model(tmp_path, pooling, *kinds)
    with pytest.raises(ModelError, match=f"{message}.*--pooling mean sets that aside"):
        embedding_settings("auto", files)
    assert embedding_settings("mean", files) == EmbeddingSettings("mean", True)


@pytest.mark.parametrize(
    "text", ["[", "[1]", '{"type": 3}', '[{"type": "a.Pooling", "path": "../.."}]', '[{"type": "a", "path": "/x"}]']
)
def test_modules_that_are_none(tmp_path: Path, text: str) -> None:
    files = model(tmp_path, None)
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(ModelError, match=r"modules\.json: "):
        embedding_settings("auto", files)


def test_matryoshka(tmp_path: Path) -> None:
    plain = model(tmp_path / "a", None)
    assert not embedding_settings("auto", plain).shortens
    assert embedding_settings("auto", plain, matryoshka=True).shortens
    assert embedding_settings("auto", model(tmp_path / "b", None, is_matryoshka=True)) == EmbeddingSettings(shortens=True)
    sized = model(tmp_path / "c", None, matryoshka_dimensions=[64, 32])
    assert embedding_settings("auto", sized) == EmbeddingSettings(shortens=True, sizes=(32, 64))
    assert embedding_settings("auto", sized, matryoshka=False) == EmbeddingSettings()
    with pytest.raises(ModelError, match="matryoshka_dimensions is 'many'"):
        embedding_settings("auto", model(tmp_path / "d", None, matryoshka_dimensions="many"))


def test_a_gguf_file(tmp_path: Path) -> None:
    def settings(**changes: object) -> EmbeddingSettings:
        return embedding_settings("auto", ModelFiles(str(write_gguf(tmp_path / "m.gguf", **changes)), "gguf", ("m",)))

    assert settings() == settings(**{"llama.pooling_type": 0}) == settings(**{"llama.pooling_type": 3}) == EmbeddingSettings()
    assert settings(**{"llama.pooling_type": 1}) == EmbeddingSettings("mean")
    with pytest.raises(ModelError, match=r"llama\.pooling_type is 2, only 1 \(mean\) and 3 \(last\)"):
        settings(**{"llama.pooling_type": 2})


def test_the_files_that_say_it_are_downloaded() -> None:
    wanted = parse_repository("Org/Model", "main")
    assert wanted is not None
    names = ["config.json", "modules.json", "1_Pooling/config.json", "onnx/config.json", "model.safetensors", "tokenizer.json"]
    assert choose(names, wanted) == ["config.json", "modules.json", "tokenizer.json", "1_Pooling/config.json", "model.safetensors"]
