"""What is said of a tokenizer before it is built, and what of it is refused."""

import json
from pathlib import Path

import pytest

from frontend.server.text.tokenizer_files import chat_template, gguf_template, gguf_vocabulary, read_settings, tokenizer_file
from protocol.errors import ModelError
from protocol.gguf_header import Value

METADATA: dict[str, Value] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["a", "b", "ab"],
    "tokenizer.ggml.merges": ["a b"],
}


SPM = METADATA | {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": [0.0, 0.0, 0.0]}


def without(key: str) -> dict[str, Value]:
    return {name: value for name, value in METADATA.items() if name != key}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (without("tokenizer.ggml.model"), "tokenizer.ggml.model is missing: use the model's Hugging Face directory"),
        (METADATA | {"tokenizer.ggml.model": "t5"}, "model is 't5'; byte-level BPE .* are read from GGUF: use the model's Hugging"),
        (METADATA | {"tokenizer.ggml.model": "bert"}, "model is 'bert'; byte-level BPE"),
        (METADATA | {"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.scores is None, a list of numbers is wanted: convert"),
        (SPM | {"tokenizer.ggml.scores": [0.0, float("nan"), 1.0]}, "scores is .*, a list of numbers is wanted"),
        (SPM | {"tokenizer.ggml.scores": [0.0]}, "tokenizer.ggml.scores holds 1 numbers for 3 tokens: convert"),
        (SPM | {"tokenizer.ggml.token_type": [1]}, "tokenizer.ggml.token_type holds 1 numbers for 3 tokens: convert"),
        (SPM | {"tokenizer.ggml.token_type": "x"}, "token_type is 'x', a list of numbers is wanted"),
        (METADATA | {"tokenizer.ggml.model": [1]}, r"tokenizer.ggml.model is \[1\]"),
        (without("tokenizer.ggml.pre"), "tokenizer.ggml.pre is missing, so it is not known how the model splits text: convert"),
        (METADATA | {"tokenizer.ggml.pre": "poro-chat"}, "pre is 'poro-chat', only gpt-2, .*smollm, .*qwen2, .* are supported"),
        (METADATA | {"tokenizer.ggml.pre": ["qwen2"]}, r"tokenizer.ggml.pre is \['qwen2'\], only"),
        (without("tokenizer.ggml.tokens"), "tokenizer.ggml.tokens is missing"),
        (METADATA | {"tokenizer.ggml.tokens": [1, 2]}, r"tokenizer.ggml.tokens is \[1, 2\], a list of texts"),
        (without("tokenizer.ggml.merges"), "tokenizer.ggml.merges is missing"),
        (METADATA | {"tokenizer.ggml.merges": "a b"}, "tokenizer.ggml.merges is 'a b', a list of texts"),
    ],
)  # fmt: skip
def test_a_vocabulary_that_is_not_read(metadata: dict[str, Value], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        gguf_vocabulary(metadata)


def test_a_gguf_template_is_a_text() -> None:
    assert gguf_template({}) is None
    assert gguf_template({"tokenizer.chat_template": "x"}) == "x"
    with pytest.raises(ModelError, match=r"tokenizer.chat_template is \['x'\], a text is wanted"):
        gguf_template({"tokenizer.chat_template": ["x"]})


def test_a_template_file_is_utf8(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes("{{ 'é' }}".encode("latin-1"))
    with pytest.raises(ModelError, match=r"chat_template\.jinja: not UTF-8: .* at byte 4"):
        chat_template(tmp_path, {"chat_template": "x"})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ([{"name": ["default"], "template": "x"}], r"entry 0 has the name \['default'\], a text is wanted"),
        ([{"name": "default", "template": "x"}, {"template": "y"}], "entry 1 has the name None, a text is wanted"),
        (["x"], "entry 0 has the name None"),
        ([{"name": "default", "template": ["x"]}], r"is \['x'\], a text is wanted"),
        (7, "is 7, a text is wanted"),
    ],
)
def test_templates_of_another_kind(tmp_path: Path, setting: object, message: str) -> None:
    with pytest.raises(ModelError, match=rf"tokenizer_config\.json: chat_template:? {message}"):
        chat_template(tmp_path, {"chat_template": setting})


def test_the_default_of_several_templates(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert chat_template(tmp_path, {"chat_template": named}) == "d"
    assert chat_template(tmp_path, {"chat_template": named[:1]}) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "no JSON to be read: Expecting property name"),
        (b"[1]", "holds no JSON object"),
        (b'{"a": "\xff"}', "no JSON to be read: "),
        (b'{"a":' * 100_000, "no JSON to be read: "),
        (b"<!DOCTYPE html>", "no JSON to be read: it is a web page"),
        (b" " * ((1 << 24) + 1), "more than 16777216 bytes"),
    ],
)
def test_settings_that_are_none(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ModelError, match=rf"x\.json: {message}"):
        read_settings(tmp_path / "x.json")


def test_a_tokenizer_that_is_not_there_or_is_something_else(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no tokenizer.json: download it too"):
        tokenizer_file(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelError, match=r"tokenizer\.json: not a tokenizer but a Git LFS pointer"):
        tokenizer_file(tmp_path)
    (tmp_path / "tokenizer.json").write_text("\n" + json.dumps({"model": {}}))
    assert tokenizer_file(tmp_path) == tmp_path / "tokenizer.json"
