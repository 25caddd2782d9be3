"""Sampling parameters of requests that say nothing."""

import json
from pathlib import Path

import pytest

from frontend.launcher.generation_config import sampling_defaults
from frontend.launcher.models import ModelFiles
from protocol.errors import ConfigError, ModelError
from protocol.params import SamplingDefaults, SamplingParams


def files(directory: Path, **fields: object) -> ModelFiles:
    (directory / "generation_config.json").write_text(json.dumps(fields))
    return ModelFiles(str(directory), "huggingface", ("m",))


def test_the_models_own_file_is_read_and_said(tmp_path: Path) -> None:
    model = files(
        tmp_path, temperature=0.6, top_p=0.9, top_k=64, max_new_tokens=100, do_sample=True, eos_token_id=[1, 2], min_p=None
    )
    defaults, said = sampling_defaults("auto", "", model)
    assert defaults == SamplingDefaults(temperature=0.6, top_p=0.9, top_k=64, max_tokens=100)
    assert defaults.params() == SamplingParams(temperature=0.6, top_p=0.9, top_k=64, max_tokens=100)
    assert "temperature 0.6, top_p 0.9, top_k 64, max_tokens 100" in said and str(tmp_path) in said


@pytest.mark.parametrize("choice", ["none", "vllm"])
def test_nobodys(tmp_path: Path, choice: str) -> None:
    assert sampling_defaults(choice, "", files(tmp_path, temperature=0.6)) == (SamplingDefaults(), "")


def test_a_gguf_file_and_a_directory_without_the_file_suggest_nothing(tmp_path: Path) -> None:
    assert sampling_defaults("auto", "", ModelFiles("/m.gguf", "gguf", ("m",))) == (SamplingDefaults(), "")
    assert sampling_defaults("auto", "", ModelFiles(str(tmp_path), "huggingface", ("m",))) == (SamplingDefaults(), "")


def test_another_file_and_single_values_in_place_of_its_own(tmp_path: Path) -> None:
    files(tmp_path, temperature=0.6, top_k=5)
    gguf = ModelFiles("/m.gguf", "gguf", ("m",))
    for choice in (tmp_path, tmp_path / "generation_config.json"):
        defaults, said = sampling_defaults(str(choice), '{"temperature": 0, "min_p": 0.05}', gguf)
        assert defaults == SamplingDefaults(temperature=0, top_k=5, min_p=0.05)
        assert "--override-generation-config" in said


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": "hot"}, "float"),
        ({"top_p": 0}, "top_p must be"),
        ({"top_k": -7}, "top_k"),
        ({"max_new_tokens": 0}, "max_tokens"),
    ],
)
def test_what_cannot_be_is_named_with_the_way_out(tmp_path: Path, fields: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=rf"generation_config\.json: .*{message}.*; --generation-config none leaves the file out"):
        sampling_defaults("auto", "", files(tmp_path, **fields))
    with pytest.raises(ConfigError, match=f"--override-generation-config: .*{message}"):
        sampling_defaults("none", json.dumps(fields), files(tmp_path))


@pytest.mark.parametrize(
    ("choice", "override", "message"),
    [
        ("/no/such/place", "", "auto, none, or a directory that holds generation_config.json is wanted"),
        ("auto", "[1]", "no JSON object"),
        ("auto", "{", "--override-generation-config: "),
        ("auto", '{"temprature": 1}', "temprature is none of temperature, top_p"),
    ],
)
def test_flags_that_cannot_be(tmp_path: Path, choice: str, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sampling_defaults(choice, override, files(tmp_path))
