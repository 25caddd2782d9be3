"""The dense families against Hugging Face transformers, on every kind of kernels, and what of their files is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol.errors import ModelError
from tests.margins import Margins, rounding_of_logits
from tests.tpu_worker.models.test_families import BLOCK_SIZE, all_logits
from tests.tpu_worker.tiny_dense import FAMILIES, NOT_IN_GGUF, make_tensors, write_gguf
from tests.tpu_worker.tiny_models import Tensors, hash_of, write_model
from tpu_worker.models.registry import model_from_config
from tpu_worker.platforms.choose import choose_platform
from tpu_worker.platforms.cpu import make_xla_platform
from tpu_worker.platforms.platform import Platform
from tpu_worker.weights.gguf import GgufSource
from tpu_worker.weights.safetensors import SafetensorsSource
from tpu_worker.weights.source import WeightSource

REFERENCES = Path(__file__).parents[2] / "data/families"
PLATFORMS = [make_xla_platform(), choose_platform("cpu", "none", (), BLOCK_SIZE, {16, 32, 256})]
SPREAD = 2.0  # of the logits of likely candidates


def reference_of(name: str) -> tuple[dict[str, Any], Tensors]:
    """What transformers computed, and the weights that it computed it with."""
    reference = json.loads((REFERENCES / f"{name}.json").read_text())
    tensors = make_tensors(FAMILIES[name], reference["shapes"])
    assert reference["weights"] == hash_of(tensors), "run scripts/make_family_references.py"
    return reference, tensors


def cases() -> list[Any]:
    """Each family in each format on each kind of kernels; what repeats most of another case is slow."""
    found = []
    for name in FAMILIES:
        for kind in ("safetensors", "gguf"):
            if kind == "gguf" and name in NOT_IN_GGUF:
                continue
            for platform in PLATFORMS:
                repeats = (kind == "gguf") == (platform.name == "XLA") and name not in NOT_IN_GGUF
                marks = [pytest.mark.slow] if repeats else []
                found.append(pytest.param(name, platform, kind, id=f"{name}-{kind}-{platform.name}", marks=marks))
    return found


@pytest.mark.parametrize(("name", "platform", "format"), cases())
def test_logprobs_are_those_of_transformers(margins: Margins, tmp_path: Path, name: str, platform: Platform, format: str) -> None:
    config = FAMILIES[name]
    reference, tensors = reference_of(name)
    if format == "gguf":
        source: WeightSource = GgufSource(write_gguf(tmp_path / "model.gguf", config, tensors))
    else:
        source = SafetensorsSource(write_model(tmp_path, config, tensors))
    token_ids = np.array(reference["token_ids"], np.int32)
    logits = all_logits(source, platform, token_ids).astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    errors = logprobs[np.arange(len(token_ids) - 1), token_ids[1:]] - np.array(reference["logprobs"])
    margins.check_logprobs(f"dense, {platform.name}", errors.tolist(), rounding_of_logits(config["num_hidden_layers"], SPREAD))
    assert np.abs(errors).max() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["olmo2", "gemma3"])
def test_shards_change_no_token(tmp_path: Path, name: str) -> None:
    """Norms over all queries and keys, or of heads, of which two chips have one half each."""
    model = write_model(tmp_path, FAMILIES[name], reference_of(name)[1])
    command = [sys.executable, "-m", "tests.tpu_worker.mesh.sharded_runs", str(model), "bfloat16", "4", "1", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    one, two = (json.loads(done.stdout)[shards]["outputs"] for shards in ("1", "2"))
    assert [two[params]["tokens"] for params in one] == [one[params]["tokens"] for params in one]
    for found, expected in zip(two["scored"]["scores"], one["scored"]["scores"], strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("prefix", ["language_model.", "older"])
def test_the_text_of_a_model_that_also_sees(tmp_path: Path, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    """Its config nests the text's, its tensors have a prefix, and those of what it sees with are left out, which is said."""
    config = FAMILIES["gemma3"]
    _, tensors = reference_of("gemma3")
    renamed = {
        name.replace("model.", "model.language_model.") if prefix == "older" else f"{prefix}{name}": values
        for name, values in tensors.items()
    }
    seeing = {"vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight": tensors["model.norm.weight"]}
    whole = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "vision_config": {"hidden_size": 8}}
    text = {key: value for key, value in config.items() if key != "architectures"}
    with caplog.at_level("INFO"):
        source = SafetensorsSource(write_model(tmp_path / "whole", {**whole, "text_config": text}, {**renamed, **seeing}))
    assert "only text is served: 1 tensors of vision_tower are left out" in caplog.text
    alone = SafetensorsSource(write_model(tmp_path / "alone", config, tensors))
    assert source.model.spec.layers == alone.model.spec.layers
    for parameters in alone.model.parameters():
        for parameter in parameters.values():
            for part in parameter.parts:
                np.testing.assert_array_equal(source.read(part), alone.read(part))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gemma2", {"hidden_activation": "relu"}, "hidden_activation 'relu' is not supported, only 'gelu_pytorch_tanh'"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention True is not supported"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention is not supported"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0 is not supported"),
        ("gemma3", {"layer_types": ["full_attention"]}, "layer_types names 1 layers, num_hidden_layers is 7"),
        ("gemma3", {"layer_types": ["chunked_attention"] * 7}, "layer_types names 'chunked_attention'"),
        ("gemma3", {"rope_parameters": {"rope_theta": 5.0}}, "rope_parameters must be an object for each of"),
        ("granite", {"logits_scaling": 0}, "logits_scaling is 0"),
        ("granite", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0 is not supported, GraniteForCausalLM has no"),
        ("olmo2", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported, only 'silu'"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers is of 2 layers, num_hidden_layers is 5"),
        ("phi4_mini", {"partial_rotary_factor": 0.5}, "short_factor has 12 numbers, one for each of 8 frequencies is wanted"),
        ("ministral3", {"rope_parameters": {"rope_theta": 5.0}}, "rope_parameters lacks llama_4_scaling_beta"),
        ("llama_yarn", {"logits_scaling": 8.0}, "logits_scaling 8.0 is not supported, only 1.0"),
        ("llama_yarn", {"no_rope_layers": [1, 0, 1, 0]}, r"no_rope_layers \[1, 0, 1, 0\] is not supported"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path: Path, name: str, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**FAMILIES[name], **change}))
    with pytest.raises(ModelError, match=message):
        model_from_config(path)
