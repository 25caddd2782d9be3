"""The sizes that come with the package, counted against what was published of each model."""

from pathlib import Path

import pytest

from protocol.model_files import read_model_facts
from protocol.model_shapes import is_shape, shape_directory, shape_names
from tpu_worker.models.registry import model_from_config
from tpu_worker.models.spec import ModelSpec
from tpu_worker.weights.dummy import DummySource
from tpu_worker.weights.precision import num_parameters

# Parameters as their makers count them (model cards and reports; of Gemma 3 from 4B on the text's alone), and to which digit.
PARAMETERS = {
    "llama-3.2-1b": (1.24e9, 0.005e9),
    "llama-3.2-3b": (3.21e9, 0.005e9),
    "llama-3.1-8b": (8.03e9, 0.005e9),
    "llama-3.1-70b": (70.6e9, 0.05e9),
    "qwen3-0.6b": (0.596e9, 0.0005e9),
    "qwen3-1.7b": (1.72e9, 0.005e9),
    "qwen3-4b": (4.02e9, 0.005e9),
    "qwen3-8b": (8.19e9, 0.005e9),
    "qwen3-14b": (14.77e9, 0.005e9),
    "qwen3-32b": (32.76e9, 0.005e9),
    "gemma-3-270m": (0.268e9, 0.0005e9),
    "gemma-3-1b": (1.00e9, 0.005e9),
    "gemma-3-4b": (3.88e9, 0.005e9),
    "gemma-3-12b": (11.77e9, 0.005e9),
    "gemma-3-27b": (27.01e9, 0.01e9),
}


def directory_of(name: str) -> Path:
    found = shape_directory(name)
    assert found is not None
    return found


def spec_of(name: str) -> ModelSpec:
    return model_from_config(directory_of(name) / "config.json").spec


def test_all_of_them_are_counted() -> None:
    assert shape_names() == sorted(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_as_many_parameters_as_published(name: str) -> None:
    published, digit = PARAMETERS[name]
    assert num_parameters(DummySource(directory_of(name))) == pytest.approx(published, abs=digit)
    facts = read_model_facts(directory_of(name), "huggingface", "dummy")
    assert facts.context_length == spec_of(name).context_length and facts.sizes.num_layers == len(spec_of(name).layers)


def test_llamas_rotation_is_scaled() -> None:
    for name, factor in (("llama-3.1-8b", 8.0), ("llama-3.1-70b", 8.0), ("llama-3.2-1b", 32.0), ("llama-3.2-3b", 32.0)):
        (rope,) = spec_of(name).ropes
        assert rope.scaling is not None and (rope.scaling.kind, rope.scaling.factor) == ("llama3", factor)
        assert (rope.theta, rope.scaling.original_context) == (500_000.0, 8192)


def test_gemmas_windows_and_scores() -> None:
    for name, window, head in (
        ("gemma-3-270m", 512, 256),
        ("gemma-3-1b", 512, 256),
        ("gemma-3-4b", 1024, 256),
        ("gemma-3-27b", 1024, 168),
    ):
        layers = spec_of(name).layers
        assert [layer.sliding_window for layer in layers[:6]] == [window] * 5 + [None]
        assert all(layer.scale == pytest.approx(head**-0.5) for layer in layers)
    # Five layers in six have a window, in the largest, too, whose layers are no multiple of six.
    assert sum(layer.sliding_window is None for layer in spec_of("gemma-3-27b").layers) == 62 // 6


def test_which_heads_are_tied() -> None:
    tied = {name for name in PARAMETERS if spec_of(name).tied_embeddings}
    untied = {"llama-3.1-8b", "llama-3.1-70b", "qwen3-8b", "qwen3-14b", "qwen3-32b"}
    assert tied == PARAMETERS.keys() - untied


def test_names_in_letters_of_any_size_and_no_paths() -> None:
    assert shape_directory("Llama-3.2-1B") == directory_of("llama-3.2-1b")
    assert is_shape(directory_of("qwen3-8b")) and not is_shape(Path("/tmp/qwen3-8b"))
    for name in ("", ".", "..", "llama", "../shapes/llama-3.2-1b", "llama-3.2-1b/"):
        assert shape_directory(name) is None
