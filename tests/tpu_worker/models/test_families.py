"""Each family against Hugging Face transformers and against the textbook's transformer, on every kind of kernels."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest

import tpu_worker
from protocol.codec import Float32Array
from protocol.errors import ModelError
from protocol.model_files import GGUF_ARCHITECTURES, HF_ARCHITECTURES
from tests.margins import Margins, rounding_of_logits
from tests.test_imports import imports
from tests.tpu_worker.tiny_models import CONFIG, FAMILIES, hash_of, make_tensors, reference_logits, write_gguf, write_model
from tpu_worker.inputs import StepInputs
from tpu_worker.kv_cache import make_caches
from tpu_worker.layer_groups import one_group
from tpu_worker.mesh.layout import make_layout
from tpu_worker.models import (
    gemma2,
    gemma3,
    gpt_oss,
    granite,
    llama,
    ministral,
    mixtral,
    olmo2,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    smollm3,
)
from tpu_worker.models.registry import FAMILIES as REGISTERED
from tpu_worker.models.registry import model_from_config
from tpu_worker.platforms.choose import choose_platform
from tpu_worker.platforms.cpu import make_xla_platform
from tpu_worker.platforms.metadata import AttentionMetadata
from tpu_worker.platforms.platform import Platform
from tpu_worker.weights.gguf import GgufSource
from tpu_worker.weights.load import WeightLoader
from tpu_worker.weights.safetensors import SafetensorsSource
from tpu_worker.weights.source import WeightSource

REFERENCES = json.loads((Path(__file__).parents[2] / "data/family_references.json").read_text())
PLATFORMS = [make_xla_platform(), choose_platform("cpu", "none", (), 16, {16, 32})]
BLOCK_SIZE = 16


def all_logits(source: WeightSource, platform: Platform, token_ids: npt.NDArray[np.int32]) -> Float32Array:
    """Logits [T, V] of one step that computes a whole sequence."""
    length, model = len(token_ids), source.model
    loader = WeightLoader(source, platform.products, make_layout(jax.devices()[:1]), length, lambda *_: None)
    weights = loader.load_rest(loader.load_first())
    num_blocks = -(-length // BLOCK_SIZE)
    caches = make_caches(model.spec, platform.attention, num_blocks + 1, BLOCK_SIZE, one_group(model.spec))
    table = jnp.arange(num_blocks, 0, -1)[None]
    meta = AttentionMetadata(table, jnp.array([0]), jnp.array([length]), jnp.array([0, length]))

    def run(weights: Any, caches: Any, token_ids: jax.Array) -> tuple[jax.Array, Any]:
        prepared = platform.attention.prepare(meta, length, BLOCK_SIZE)
        inputs = StepInputs(
            token_ids, one_group(model.spec).spread([prepared]), jnp.int32(length), jnp.arange(length), jnp.int32(length)
        )
        x, caches = model.family.forward(model.spec, platform, weights, caches, inputs)
        return model.family.logits(model.spec, platform, weights, x, inputs.num_sampled), caches

    logits, _ = jax.jit(run, donate_argnums=1)(weights, caches, jnp.asarray(token_ids))
    return np.asarray(logits)


def rounding(config: dict[str, Any]) -> float:
    """Of logits: those of these models spread by 1.6, and their weights, larger than trained ones, magnify errors about twice."""
    return 2 * rounding_of_logits(config["num_hidden_layers"], spread=1.6)


def errors_of_logprobs(name: str, logits: Float32Array) -> Float32Array:
    """How far the log-probability of each token of the reference is off."""
    reference = REFERENCES[name]
    wide = logits.astype(np.float64)
    logprobs = wide - np.log(np.exp(wide - wide.max(-1, keepdims=True)).sum(-1, keepdims=True)) - wide.max(-1, keepdims=True)
    found = logprobs[np.arange(len(wide) - 1), reference["token_ids"][1:]]
    errors: Float32Array = np.abs(found - np.array(reference["logprobs"])).astype(np.float32)
    return errors


@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda platform: platform.name)
@pytest.mark.parametrize(
    ("name", "form"),
    # GGUF files do not say which layers have windows.
    [*((name, "safetensors") for name in FAMILIES), *((name, "gguf") for name in FAMILIES if name != "qwen2 with windows")],
)
def test_logprobs_are_those_of_transformers(margins: Margins, tmp_path: Path, platform: Platform, name: str, form: str) -> None:
    config, reference = FAMILIES[name], REFERENCES[name]
    tensors = make_tensors(config)
    assert hash_of(tensors) == reference["weights"], "the weights are not those that the references were made with"
    source: WeightSource
    if form == "gguf":
        source = GgufSource(write_gguf(tmp_path / "m.gguf", config, tensors))
    else:
        source = SafetensorsSource(write_model(tmp_path, config, tensors))
    logits = all_logits(source, platform, np.array(reference["token_ids"], np.int32))
    errors = errors_of_logprobs(name, logits)
    margins.check_logprobs(f"families, {platform.name}", errors.tolist(), rounding(config))


@pytest.mark.every_processor
@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda platform: platform.name)
@pytest.mark.parametrize(
    "change",
    [{}, {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}, {"num_attention_heads": 2, "head_dim": 16}],
    ids=["plain", "tied", "biases", "narrow heads"],
)
def test_forward_agrees_with_the_textbook(margins: Margins, tmp_path: Path, platform: Platform, change: dict[str, Any]) -> None:
    config = {**CONFIG, **change}
    tensors = make_tensors(config)
    source = SafetensorsSource(write_model(tmp_path, config, tensors))
    token_ids = np.random.default_rng(1).integers(0, config["vocab_size"], 37).astype(np.int32)
    expected = reference_logits(config, tensors, token_ids)
    margins.check_rounding(f"logits, {platform.name}", all_logits(source, platform, token_ids), expected, rounding(config))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_dimension_of_a_parameter_has_a_logical_axis(tmp_path: Path, name: str) -> None:
    config = FAMILIES[name]
    model = SafetensorsSource(write_model(tmp_path, config, make_tensors(config))).model
    for parameters in model.parameters():
        for parameter in parameters.values():
            assert all(len(part.axes) == len(part.shape) for part in parameter.parts)
    qkv = model.parameters()[1]["qkv"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    assert qkv.shape == ((heads + 2 * kv_heads) * config["head_dim"], config["hidden_size"])
    assert [part.axes[0] for part in qkv.parts] == ["heads", "kv_heads", "kv_heads"]


def test_a_family_from_outside(tmp_path: Path) -> None:
    """One more is a Family beside the others: here Llama under another name, without touching anything of the engine."""
    config = {**CONFIG, "architectures": ["AlpacaForCausalLM"]}
    path = write_model(tmp_path, config, make_tensors(CONFIG)) / "config.json"
    with pytest.raises(ModelError, match="architecture 'AlpacaForCausalLM' is not supported, only LlamaForCausalLM"):
        model_from_config(path)
    model = model_from_config(path, [*REGISTERED, replace(llama.FAMILY, huggingface=("AlpacaForCausalLM",))])
    assert model.spec.architecture == "AlpacaForCausalLM"


def test_the_launcher_knows_the_same_names() -> None:
    assert HF_ARCHITECTURES == tuple(name for family in REGISTERED for name in family.huggingface)
    assert GGUF_ARCHITECTURES == tuple(name for family in REGISTERED for name in family.gguf)


def test_nothing_else_names_a_family() -> None:
    """Only the registry imports the files of families, and families that build on others."""
    root = Path(tpu_worker.__file__).parent
    families = (llama, qwen2, qwen3, mixtral, qwen3_moe, gpt_oss, gemma2, gemma3, phi3, smollm3, olmo2, granite, ministral)
    modules = {module.__name__ for module in families}
    assert [module.FAMILY for module in families] == list(REGISTERED)
    for path in root.rglob("*.py"):
        if path.name != "registry.py" and f"tpu_worker.models.{path.stem}" not in modules:
            imported = {module for _, module in imports(path)}
            assert not imported & modules, path
