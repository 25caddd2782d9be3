"""The model against the textbook's transformer, and the sizes that it reads from files."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tpu_worker.tiny_models import CONFIG, make_tensors, reference_logits, write_model
from tpu_worker.inputs import StepInputs
from tpu_worker.models.llama import Weights, forward, layer_parameters, model_parameters
from tpu_worker.models.spec import ModelSpec, RopeScaling
from tpu_worker.platforms.choose import choose_platform
from tpu_worker.platforms.cpu import make_xla_platform
from tpu_worker.platforms.metadata import AttentionMetadata
from tpu_worker.platforms.platform import Caches, Platform
from tpu_worker.weights.load import WeightLoader
from tpu_worker.weights.safetensors import SafetensorsSource

LENGTH = 37


@pytest.mark.parametrize("platform", [make_xla_platform(), choose_platform("cpu", "auto", False, 16, 32)], ids=lambda p: p.name)
@pytest.mark.parametrize(
    "change",
    [{}, {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}, {"num_attention_heads": 2, "head_dim": 16}],
    ids=["plain", "tied", "biases", "narrow heads"],
)
def test_forward_agrees_with_the_textbook(tmp_path: Path, platform: Platform, change: dict[str, Any]) -> None:
    config = {**CONFIG, **change}
    tensors = make_tensors(config)
    source = SafetensorsSource(write_model(tmp_path, config, tensors))
    loader = WeightLoader(source, platform.products, LENGTH, lambda *_: None)
    weights = loader.load_rest(loader.load_first())
    spec = source.spec
    token_ids = np.random.default_rng(1).integers(0, spec.vocab_size, LENGTH).astype(np.int32)
    caches = platform.attention.make_caches(spec.num_layers, 4, 16, spec.num_kv_heads, spec.head_dim)
    meta = AttentionMetadata(jnp.array([[2, 0, 3]]), jnp.array([0]), jnp.array([LENGTH]), jnp.array([0, LENGTH]))

    @jax.jit
    def run(weights: Weights, caches: Caches, token_ids: jax.Array) -> jax.Array:
        prepared = platform.attention.prepare(meta, LENGTH, 16)
        inputs = StepInputs(token_ids, prepared, meta.offsets[-1], jnp.array([LENGTH - 1]), jnp.int32(1))
        return forward(spec, platform, weights, caches, inputs)[0]

    logits = run(weights, caches, jnp.asarray(token_ids))
    expected = reference_logits(config, tensors, token_ids)[-1]
    # bfloat16 keys and values, and activations in the products of the XLA kernels: 3 significant digits.
    np.testing.assert_allclose(np.asarray(logits)[0], expected, atol=0.03 * np.abs(expected).max())
    assert np.corrcoef(np.asarray(logits)[0], expected)[0, 1] > 0.9995


def test_every_dimension_of_a_parameter_has_a_logical_axis() -> None:
    spec = ModelSpec("x", 96, 64, 80, 2, 4, 2, 32, 256, 1e-5, 500.0, attention_bias=True, output_bias=True, mlp_bias=True)
    for parameters in (model_parameters(spec), layer_parameters(spec, 1)):
        for parameter in parameters.values():
            assert all(len(part.axes) == len(part.shape) for part in parameter.parts)
    qkv = layer_parameters(spec, 1)["qkv"]
    assert qkv.shape == (256, 64)
    assert [part.axes[0] for part in qkv.parts] == ["heads", "kv_heads", "kv_heads"]


def test_llama3_rope_scaling_of_llama_3_2() -> None:
    """Llama 3.2 1B's own numbers: high frequencies stay, low ones are divided by 32, some lie in between."""
    scaling = RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)
    spec = ModelSpec("x", 96, 2048, 80, 2, 32, 8, 64, 131072, 1e-5, 500000.0, scaling)
    plain = 500000.0 ** -(np.arange(0, 64, 2) / 64)
    ratio = plain / spec.inverse_frequencies()
    waves = 2 * np.pi / plain
    np.testing.assert_allclose(ratio[waves < 8192 / 4], 1.0, rtol=1e-5)
    np.testing.assert_allclose(ratio[waves > 8192], 32.0, rtol=1e-5)
    between = (waves > 8192 / 4) & (waves < 8192)
    assert between.any() and ((ratio[between] > 1) & (ratio[between] < 32)).all()
    at = np.flatnonzero(between)[0]
    smooth = (8192 / waves[at] - 1) / 3
    np.testing.assert_allclose(spec.inverse_frequencies()[at], (1 - smooth) * plain[at] / 32 + smooth * plain[at], rtol=1e-5)


def test_linear_rope_scaling_divides() -> None:
    spec = ModelSpec("x", 96, 64, 80, 2, 4, 2, 32, 256, 1e-5, 500.0, RopeScaling("linear", 4.0))
    np.testing.assert_allclose(spec.inverse_frequencies()[:2], [0.25, 500.0 ** (-2 / 32) / 4], rtol=1e-6)
