"""Which models are computed in float32 when nobody says so."""

from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType

from protocol.config import Quantization
from tests.tpu_worker.tiny_models import CONFIG, FAMILIES, make_tensors, write_gguf, write_model
from tpu_worker.weights.gguf import GgufSource
from tpu_worker.weights.precision import MOST_PARAMETERS, choose_float_type, num_parameters
from tpu_worker.weights.safetensors import SafetensorsSource


def test_parameters_are_counted_once(tmp_path: Path) -> None:
    for index, config in enumerate((CONFIG, FAMILIES["qwen2"])):  # the second one's head is its embedding
        tensors = make_tensors(config)
        source = SafetensorsSource(write_model(tmp_path / str(index), config, tensors))
        assert num_parameters(source) == sum(tensor.size for tensor in tensors.values())


@pytest.mark.parametrize(
    ("quantization", "expected"), [("auto", "float32"), ("none", "float32"), ("int8", "bfloat16"), ("fp8", "bfloat16")]
)
def test_small_models_of_floats(tmp_path: Path, quantization: Quantization, expected: str) -> None:
    tensors = make_tensors(CONFIG)
    source = SafetensorsSource(write_model(tmp_path, CONFIG, tensors))
    assert choose_float_type("auto", quantization, source) == expected
    assert choose_float_type("bfloat16", quantization, source) == "bfloat16"
    floats = GgufSource(write_gguf(tmp_path / "f32.gguf", CONFIG, tensors))
    assert choose_float_type("auto", quantization, floats) == expected


def test_large_models_and_blocks(tmp_path: Path) -> None:
    tensors = make_tensors(CONFIG)
    source = SafetensorsSource(write_model(tmp_path, CONFIG, tensors))
    wide = replace(source.model.spec, vocab_size=MOST_PARAMETERS // CONFIG["hidden_size"])
    source.model = replace(source.model, spec=wide)
    assert choose_float_type("auto", "auto", source) == "bfloat16"
    assert choose_float_type("float32", "auto", source) == "float32"
    blocks = GgufSource(write_gguf(tmp_path / "q8.gguf", CONFIG, tensors, GGMLQuantizationType.Q8_0))
    assert choose_float_type("auto", "auto", blocks) == "float32"  # small, too: they stay in their blocks
    assert choose_float_type("float32", "auto", blocks) == "float32"
