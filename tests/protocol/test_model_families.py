"""Who serves an architecture, by the metadata of what is installed."""

import sys
from pathlib import Path

import pytest

from protocol.errors import ModelError
from protocol.model_families import OutsideFamily, families_from_outside, find_family
from protocol.model_files import read_model_facts
from protocol.sharding import LayerSizes
from tests.model_writer import write_gguf, write_huggingface
from tests.outside_family import write_metadata


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "site"
    write_metadata(path, "plum-models", "2.0", {"PlumForCausalLM": "no_such_module:FAMILY", "plum": "no_such_module:FAMILY"})
    monkeypatch.syspath_prepend(path)
    return path


def test_names_are_found_and_nothing_is_imported(installed: Path, tmp_path: Path) -> None:
    found = [family for family in families_from_outside() if family.distribution == "plum-models 2.0"]
    assert [family.architecture for family in found] == ["PlumForCausalLM", "plum"]
    path = write_huggingface(tmp_path / "m", architectures=["PlumForCausalLM"])
    facts = read_model_facts(path, "huggingface")
    assert (facts.architecture, facts.vocab_size, facts.context_length) == ("PlumForCausalLM", 10, 256)
    changes = {"general.architecture": "plum", "plum.block_count": 2, "plum.context_length": 64}
    assert read_model_facts(write_gguf(tmp_path / "m.gguf", **changes), "gguf").context_length == 64
    assert "no_such_module" not in sys.modules


def test_its_files_may_have_names_of_their_own(installed: Path, tmp_path: Path) -> None:
    """Layers that are called otherwise, in a number that no field of ours says, and another field for the context."""
    path = write_huggingface(
        tmp_path / "m",
        architectures=["PlumForCausalLM"],
        num_hidden_layers=None,
        max_position_embeddings=None,
        n_positions=32,
    )
    facts = read_model_facts(path, "huggingface")
    assert (facts.context_length, facts.context_field) == (32, f"n_positions in {path / 'config.json'}")
    assert facts.layers == LayerSizes(1, 1, 8)


def test_an_unknown_one_is_refused_with_all_that_are_known(installed: Path, tmp_path: Path) -> None:
    path = write_huggingface(tmp_path / "m", architectures=["PearForCausalLM"])
    with pytest.raises(ModelError, match="architecture 'PearForCausalLM' is not supported, only LlamaForCausalLM.*PlumForCausalLM"):
        read_model_facts(path, "huggingface")


def test_two_distributions_for_one_architecture(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(write_metadata(tmp_path / "more", "orchard", "0.1", {"PlumForCausalLM": "orchard:PLUM"}))
    path = write_huggingface(tmp_path / "m", architectures=["PlumForCausalLM"])
    with pytest.raises(
        ModelError,
        match=r"'PlumForCausalLM' \(orchard:PLUM\) of the distribution orchard 0\.1 and entry point .* plum-models 2\.0 both",
    ):
        read_model_facts(path, "huggingface")
    read_model_facts(write_huggingface(tmp_path / "other"), "huggingface")  # whom it does not concern


def test_one_for_an_architecture_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(write_metadata(tmp_path / "site", "alpaca", "1.2", {"LlamaForCausalLM": "alpaca:FAMILY"}))
    with pytest.raises(ModelError, match=r"alpaca 1\.2: the engine serves LlamaForCausalLM itself: uninstall"):
        read_model_facts(write_huggingface(tmp_path / "m"), "huggingface")


def test_who_serves() -> None:
    plum = OutsideFamily("plum", "a:b", "a 1")
    assert find_family("llama", ("llama",), (plum,)) is None
    assert find_family("plum", ("llama",), (plum,)) == plum
    assert find_family("pear", ("llama",), (plum,)) is None
