"""Mixtures of experts against Hugging Face transformers, on every kind of kernels, and what of their files is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from protocol.errors import ModelError
from tests.margins import Margins, rounding_of_logits
from tests.tpu_worker.compiler import needs_compiler
from tests.tpu_worker.models.test_families import PLATFORMS, all_logits
from tests.tpu_worker.tiny_experts import FAMILIES, make_tensors, write_gguf
from tests.tpu_worker.tiny_models import Tensors, hash_of, write_model
from tpu_worker.mesh.layout import make_layout
from tpu_worker.platforms.cpu import make_products
from tpu_worker.platforms.platform import Platform
from tpu_worker.weights.gguf import GgufSource
from tpu_worker.weights.load import WeightLoader, kinds_held
from tpu_worker.weights.safetensors import SafetensorsSource
from tpu_worker.weights.source import WeightSource

REFERENCES = Path(__file__).parents[2] / "data/families"
SPREAD = 2.0  # of the logits of likely candidates


def errors_of(name: str, source: WeightSource, platform: Platform) -> Any:
    """Differences of the log-probabilities of a forced continuation from those of transformers."""
    reference = json.loads((REFERENCES / f"{name}.json").read_text())
    assert reference["weights"] == hash_of(make_tensors(FAMILIES[name])), "run scripts/make_family_references.py"
    token_ids = np.array(reference["token_ids"], np.int32)
    logits = all_logits(source, platform, token_ids).astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return logprobs[np.arange(len(token_ids) - 1), token_ids[1:]] - np.array(reference["logprobs"])


@pytest.mark.every_processor
@pytest.mark.parametrize("format", ["safetensors", "gguf"])
@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda platform: platform.name)
@pytest.mark.parametrize("name", FAMILIES)
def test_logprobs_are_those_of_transformers(margins: Margins, tmp_path: Path, name: str, platform: Platform, format: str) -> None:
    config = FAMILIES[name]
    tensors = make_tensors(config)
    if format == "gguf":
        source: WeightSource = GgufSource(write_gguf(tmp_path / "model.gguf", config, tensors))
    else:
        source = SafetensorsSource(write_model(tmp_path, config, tensors))
    errors = errors_of(name, source, platform)
    margins.check_logprobs(f"mixtures, {platform.name}", errors.tolist(), rounding_of_logits(config["num_hidden_layers"], SPREAD))
    assert np.abs(errors).max() < 0.1


def test_layers_differ_as_the_config_says(tmp_path: Path) -> None:
    config = {**FAMILIES["qwen3_moe"], "num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3]}
    layers = SafetensorsSource(write_model(tmp_path, config, make_tensors(config))).model.spec.layers
    assert [layer.intermediate_size for layer in layers] == [80, 24, 80, 80, 80, 24]
    assert [layer.experts is not None for layer in layers] == [False, True, False, False, False, True]


def fused(tensors: Tensors, num_layers: int) -> Tensors:
    """Experts as transformers holds them, those of a layer in one tensor."""
    found = {name: values for name, values in tensors.items() if ".experts." not in name}
    for layer in range(num_layers):
        mine = [values for name, values in tensors.items() if f"layers.{layer}.block_sparse_moe.experts." in name]
        prefix = f"model.layers.{layer}.mlp.experts."
        pairs = zip(mine[::3], mine[1::3], strict=True)
        found[prefix + "gate_up_proj"] = np.stack([np.concatenate([gate, up]) for gate, up in pairs])
        found[prefix + "down_proj"] = np.stack(mine[2::3])
    return found


def test_experts_in_one_tensor_are_the_same(tmp_path: Path) -> None:
    config = FAMILIES["mixtral"]
    tensors = make_tensors(config)
    apart = SafetensorsSource(write_model(tmp_path / "apart", config, tensors))
    together = SafetensorsSource(write_model(tmp_path / "together", config, fused(tensors, config["num_hidden_layers"])))
    for parameters in apart.model.parameters():
        for parameter in parameters.values():
            for part in parameter.parts:
                np.testing.assert_array_equal(apart.read(part), together.read(part))


def test_older_gguf_files_have_a_tensor_for_each_expert(tmp_path: Path) -> None:
    config = FAMILIES["mixtral"]
    tensors = make_tensors(config)
    stacked = GgufSource(write_gguf(tmp_path / "stacked.gguf", config, tensors))
    apart = GgufSource(write_gguf(tmp_path / "apart.gguf", config, tensors, stacked=False))
    for parameter in stacked.model.parameters()[1].values():
        for part in parameter.parts:
            np.testing.assert_array_equal(stacked.read(part), apart.read(part))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_experts_per_tok": 9}, "9 experts per token of 8 in all"),
        ({"num_experts_per_tok": 0}, "number of experts per token is 0"),
        ({"num_experts": 7}, r"no use for these tensors: model.layers.0.mlp.experts.7.down_proj.weight"),
        ({"num_experts": 9}, r"mlp.gate.weight has shape \[8, 64\], but the model's sizes ask for \[9, 64\]"),
        ({"moe_intermediate_size": 25}, r"experts.0.gate_proj.weight has shape \[24, 64\].* ask for \[25, 64\]"),
        ({"mlp_only_layers": []}, r"no use for these tensors: model.layers.1.mlp.down_proj.weight"),
        ({"mlp_only_layers": [1, 3]}, r"mlp_only_layers \[1, 3\] names layers that are not among the 3"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step is 0"),
    ],
)
def test_what_contradicts_the_tensors_is_named(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    config = FAMILIES["qwen3_moe"]
    directory = write_model(tmp_path, {**config, **changes}, make_tensors(config))
    with pytest.raises(ModelError, match=reason):
        read_all(SafetensorsSource(directory))


@pytest.mark.parametrize("name", ["mlp.experts.3.up_proj.weight", "mlp.gate.weight"])
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    config = FAMILIES["qwen3_moe"]
    tensors = make_tensors(config)
    del tensors[f"model.layers.0.{name}"]
    with pytest.raises(ModelError, match=f"{name} of shape .* is missing"):
        read_all(SafetensorsSource(write_model(tmp_path, config, tensors)))


def read_all(source: WeightSource) -> None:
    for parameters in source.model.parameters():
        for parameter in parameters.values():
            for part in parameter.parts:
                source.read(part)


def in_mxfp4(config: dict[str, Any]) -> tuple[Tensors, Tensors]:
    """The tensors of a gpt-oss whose experts are in MXFP4, as published ones are, and with the numbers that these stand for."""
    random = np.random.default_rng(4)
    quantised, plain = {}, {}
    for name, values in make_tensors(config).items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            quantised[name] = plain[name] = values
            continue
        count, width, out = values.shape
        blocks = random.integers(0, 256, (count, out, width // 32, 16), np.uint8)
        scales = random.integers(121, 125, (count, out, width // 32), np.uint8)
        numbers = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(count, out, width // 32, 32)
        table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
        stands_for = table[numbers] * 2.0 ** (scales[..., None].astype(float) - 127)
        quantised |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        plain[name] = np.ascontiguousarray(stands_for.reshape(count, out, width).swapaxes(1, 2)).astype(values.dtype)
    return quantised, plain


@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda platform: platform.name)
def test_mxfp4_is_what_it_stands_for(margins: Margins, tmp_path: Path, platform: Platform) -> None:
    config = FAMILIES["gpt_oss"]
    quantised, plain = in_mxfp4(config)
    quantised_config = {**config, "quantization_config": {"quant_method": "mxfp4"}}
    sources: tuple[WeightSource, ...] = (
        SafetensorsSource(write_model(tmp_path / "plain", config, plain)),
        SafetensorsSource(write_model(tmp_path / "mxfp4", quantised_config, quantised)),
        GgufSource(write_gguf(tmp_path / "mxfp4.gguf", config, plain, expert_kind=GGMLQuantizationType.MXFP4)),
    )
    for parameters in zip(*(source.model.parameters()[2].values() for source in sources), strict=True):
        for parts in zip(*(parameter.parts for parameter in parameters), strict=True):
            first, *others = (source.read(part).astype(np.float32) for source, part in zip(sources, parts, strict=True))
            for other in others:
                np.testing.assert_array_equal(first, other)
    token_ids = np.random.default_rng(5).integers(0, config["vocab_size"], 70).astype(np.int32)
    first, *others = (all_logits(source, platform, token_ids) for source in sources)
    typical = rounding_of_logits(config["num_hidden_layers"], float(first.std()))
    for other in others:
        margins.check_rounding(f"logits with MXFP4, {platform.name}", other, first.astype(np.float64), typical)


@needs_compiler
@pytest.mark.every_processor
@pytest.mark.parametrize("form", ["safetensors", "gguf"])
def test_mxfp4_stays_in_its_blocks(margins: Margins, tmp_path: Path, form: str) -> None:
    config = FAMILIES["gpt_oss"]
    quantised, plain = in_mxfp4(config)
    rounded, platform = (replace(PLATFORMS[1], products=make_products(*how)) for how in (("none", ()), ("auto", ["MXFP4"])))
    if form == "gguf":
        path = write_gguf(tmp_path / "mxfp4.gguf", config, plain, expert_kind=GGMLQuantizationType.MXFP4)
        source: WeightSource = GgufSource(path)
    else:
        quantised_config = {**config, "quantization_config": {"quant_method": "mxfp4"}}
        source = SafetensorsSource(write_model(tmp_path / "mxfp4", quantised_config, quantised))
    assert kinds_held(source) == {"MXFP4"}
    loader = WeightLoader(source, platform.products, make_layout(jax.devices()[:1]), 16, lambda *_: None)
    layer = loader.load_rest(loader.load_first())["layers"].take(1)
    assert {layer[name].kind for name in ("expert_gate_up", "expert_down")} == {"MXFP4"}
    token_ids = np.random.default_rng(5).integers(0, config["vocab_size"], 70).astype(np.int32)
    expected = all_logits(SafetensorsSource(write_model(tmp_path / "plain", config, plain)), rounded, token_ids)
    typical = rounding_of_logits(config["num_hidden_layers"], float(expected.std()))
    margins.check_rounding(
        "logits with MXFP4 in blocks", all_logits(source, platform, token_ids), expected.astype(np.float64), typical
    )


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("gate_up_proj_scales", (6, 64, 3), r"gate_up_proj_scales has shape \[6, 64, 3\], .* ask for \[6, 64, 2\]"),
        ("down_proj_scales", None, "down_proj_scales of shape .* is missing"),
        ("gate_up_proj_scales", None, "damaged: tensor .*gate_up_proj_scales holds weights that are no finite numbers"),
        ("down_proj_blocks", (6, 64, 1, 8), r"down_proj_blocks has shape \[6, 64, 1, 8\]"),
    ],
)
def test_mxfp4_that_does_not_fit_is_named(tmp_path: Path, name: str, shape: tuple[int, ...] | None, reason: str) -> None:
    config = FAMILIES["gpt_oss"]
    tensors, _ = in_mxfp4(config)
    if reason.startswith("damaged"):
        tensors[f"model.layers.0.mlp.experts.{name}"][2, 1, 1] = 255
    else:
        del tensors[f"model.layers.0.mlp.experts.{name}"]
    if shape is not None:
        tensors[f"model.layers.0.mlp.experts.{name}"] = np.zeros(shape, np.uint8)
    with pytest.raises(ModelError, match=reason):
        read_all(SafetensorsSource(write_model(tmp_path, config, tensors)))
