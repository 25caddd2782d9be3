"""Weights of few bits in Hugging Face directories: what they stand for, how they are kept, and what contradicts the config."""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

from protocol.config import FloatType
from protocol.errors import ModelError
from tests.margins import Margins
from tests.tpu_worker import tiny_dense, tiny_experts
from tests.tpu_worker.compiler import needs_compiler
from tests.tpu_worker.models.test_dense import reference_of
from tests.tpu_worker.models.test_families import BLOCK_SIZE, all_logits, rounding
from tests.tpu_worker.quantised_checkpoints import FORMATS, WIDE, Format, float8, is_quantised, quantise_tensors
from tests.tpu_worker.tiny_models import Tensors, make_tensors, reference_logits, write_model
from tpu_worker.mesh.layout import make_layout
from tpu_worker.models.spec import Part
from tpu_worker.platforms.choose import choose_platform
from tpu_worker.platforms.cpu import make_xla_platform
from tpu_worker.weights.kept import describe_weights
from tpu_worker.weights.load import WeightLoader, kinds_held
from tpu_worker.weights.safetensors import SafetensorsSource
from tpu_worker.weights.scaled_blocks import SPANS

TENSORS = make_tensors(WIDE)


def write(directory: Path, form: Format, config: dict[str, Any] = WIDE, **more: Any) -> tuple[Path, Tensors]:
    """A model stored so, and the weights that it stands for. more: of what `quantise_tensors` takes."""
    tensors = TENSORS if config is WIDE else make_tensors(config)
    stored, meant = quantise_tensors(form, tensors, **more)
    return write_model(directory, {**config, "quantization_config": form.config}, stored, shards=2), meant


def parts_of(source: SafetensorsSource) -> list[Part]:
    return [part for group in source.model.parameters() for one in group.values() for part in one.parts]


def read_all(directory: Path) -> None:
    source = SafetensorsSource(directory)
    for part in parts_of(source):
        source.read(part)


@pytest.mark.parametrize("name", FORMATS)
def test_weights_are_what_the_formula_says(tmp_path: Path, name: str) -> None:
    """Dequantised, and in blocks too: but for one rounding of a product in float32."""
    form = FORMATS[name]
    directory, meant = write(tmp_path, form)
    source = SafetensorsSource(directory)
    quantised = 0
    for part in parts_of(source):
        expected = meant[part.name]
        np.testing.assert_allclose(np.asarray(source.read(part), np.float32), expected, rtol=2**-23, atol=0)
        if is_quantised(part.name):
            assert source.stored_kind(part) == form.kind
            quantised += 1
            if form.kind in SPANS:
                blocks = source.read_blocks(part)
                assert (blocks.kind, blocks.shape) == (form.kind, part.shape)
                assert blocks.is_finite()
                np.testing.assert_allclose(blocks.values(), expected, rtol=2**-23, atol=0)
        else:
            assert source.stored_kind(part) is None
    assert quantised == 2 * 7
    assert kinds_held(source) == {form.kind}


SLOW = pytest.mark.slow
QUICK = ("fp8 blocks", "int-quantized group, asymmetric", "awq", "gptq, reordered")
LOGPROBS = [pytest.param(name, marks=[] if name in QUICK else [SLOW]) for name in FORMATS]


def logprobs(logits: Any, token_ids: Any) -> Any:
    """Of each token but the first."""
    wide = np.asarray(logits, np.float64)
    wide = wide - wide.max(-1, keepdims=True)
    return (wide - np.log(np.exp(wide).sum(-1, keepdims=True)))[np.arange(len(token_ids) - 1), token_ids[1:]]


@needs_compiler
@pytest.mark.every_processor
@pytest.mark.parametrize("name", LOGPROBS)
@pytest.mark.parametrize(("kernels", "dtype"), [("C++", "bfloat16"), ("C++", "float32"), ("XLA", "bfloat16")])
def test_logprobs_are_those_of_the_dequantised_weights(
    margins: Margins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kernels: str, dtype: FloatType
) -> None:
    """In float32, which is what models so small are computed in, nothing but the last bits of sums is lost."""
    monkeypatch.setattr("tpu_worker.platforms.cpu.prefers_blocks", lambda: True)
    monkeypatch.setattr("tpu_worker.platforms.cpu.preferred", lambda: "native")
    directory, meant = write(tmp_path, FORMATS[name])
    source = SafetensorsSource(directory)
    kinds = kinds_held(source)
    platform = make_xla_platform() if kernels == "XLA" else choose_platform("cpu", "auto", kinds, BLOCK_SIZE, {32}, dtype=dtype)
    assert platform.name == kernels
    assert platform.products.keeps_blocks == (kinds & {*SPANS} if kernels == "C++" else ())
    token_ids = np.random.default_rng(1).integers(0, WIDE["vocab_size"], 37).astype(np.int32)
    found, expected = all_logits(source, platform, token_ids), reference_logits(WIDE, meant, token_ids)
    error = np.abs(logprobs(found, token_ids) - logprobs(expected, token_ids)).max()
    if dtype == "float32":
        margins.check("log-probabilities of quantised checkpoints in float32", error, 1e-3)
    else:
        margins.check_rounding(f"logits of quantised checkpoints, {kernels}", found, expected, rounding(WIDE))
        assert error < 0.1


@needs_compiler
@pytest.mark.parametrize(
    ("name", "quantization", "said"),
    [
        ("awq", "auto", r"INT4 \d+ KB, bf16 \d+ KB, f32 \d+ KB"),
        ("fp8 blocks", "auto", r"FP8 \d+ KB, bf16 \d+ KB, f32 \d+ KB"),
        ("int-quantized channel", "auto", r"INT8 \d+ KB, bf16 \d+ KB, f32 \d+ KB"),
        ("int-quantized channel", "none", r"bf16 \d+ KB(, f32 \d+ KB)? \(INT8 dequantised\)"),
        ("gptq, reordered", "auto", r"bf16 \d+ KB(, f32 \d+ KB)? \(INT4 dequantised\)"),
    ],
)
def test_how_weights_are_kept_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, quantization: Any, said: str
) -> None:
    monkeypatch.setattr("tpu_worker.platforms.cpu.prefers_blocks", lambda: True)
    monkeypatch.setattr("tpu_worker.platforms.cpu.preferred", lambda: "native")
    source = SafetensorsSource(write(tmp_path, FORMATS[name])[0])
    products = choose_platform("cpu", quantization, kinds_held(source), 16, {32}).products
    loader = WeightLoader(source, products, make_layout(jax.devices()[:1]), 16, lambda *_: None)
    found = describe_weights(loader.load_rest(loader.load_first()), kinds_held(source))
    assert re.fullmatch(said, found), found


@pytest.mark.parametrize("name", ["fp8 blocks", "float-quantized block"])
def test_blocks_that_do_not_come_out_even(tmp_path: Path, name: str) -> None:
    """The last ones of a weight are smaller; inputs that are no whole blocks of 32 are dequantised."""
    config = {**WIDE, "hidden_size": 160, "intermediate_size": 200}
    directory, meant = write(tmp_path, FORMATS[name], config)
    source = SafetensorsSource(directory)
    for part in parts_of(source):
        np.testing.assert_allclose(np.asarray(source.read(part), np.float32), meant[part.name], rtol=2**-23, atol=0)
        kind = source.stored_kind(part)
        assert kind == (
            None
            if not is_quantised(part.name)
            else "FP8"
            if "down_proj" in part.name
            else "FP8_32"
            if part.shape[1] == 160
            else "FP8_128"
        )
        if kind in SPANS:
            np.testing.assert_allclose(source.read_blocks(part).values(), meant[part.name], rtol=2**-23, atol=0)


@pytest.mark.parametrize("name", ["fp8 tensor", "int-quantized channel", "pack-quantized group", "awq", "gptq"])
@pytest.mark.parametrize("how", ["ignored", "not said"])
def test_modules_that_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, how: str) -> None:
    """By the config's list; or without a word, where what the file holds is plain: floats without scales."""
    form = FORMATS[name]
    key = "ignore" if "config_groups" in form.config else "modules_to_not_convert"
    left_out = ["model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"]
    config = {**form.config, key: [*(form.config.get(key) or []), *(left_out if how == "ignored" else [])]}
    with caplog.at_level(logging.INFO):
        directory, meant = write(
            tmp_path, Format(config, form.store, form.kind), chosen=lambda one: is_quantised(one) and one[:-7] not in left_out
        )
        source = SafetensorsSource(directory)
    for part in parts_of(source):
        np.testing.assert_allclose(np.asarray(source.read(part), np.float32), meant[part.name], rtol=2**-23, atol=0)
        assert (source.stored_kind(part) is not None) == (is_quantised(part.name) and part.name[:-7] not in left_out)
    assert "12 matrices" in caplog.text
    assert ("2 that quantization_config counts among the quantised are stored in floats" in caplog.text) == (how == "not said")


@needs_compiler
def test_a_fused_matrix_of_which_a_part_is_left_out_is_dequantised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpu_worker.platforms.cpu.prefers_blocks", lambda: True)
    monkeypatch.setattr("tpu_worker.platforms.cpu.preferred", lambda: "native")
    form = FORMATS["awq"]
    config = {**form.config, "modules_to_not_convert": ["k_proj"]}
    directory, _ = write(
        tmp_path, Format(config, form.store, form.kind), chosen=lambda one: is_quantised(one) and "k_proj" not in one
    )
    source = SafetensorsSource(directory)
    products = choose_platform("cpu", "auto", kinds_held(source), 16, {32}).products
    loader = WeightLoader(source, products, make_layout(jax.devices()[:1]), 16, lambda *_: None)
    layer = loader.load_rest(loader.load_first())["layers"].take(0)
    assert {name: layer[name].kind for name in ("qkv", "output", "gate_up", "down")} == {
        "qkv": None,
        "output": "INT4_128",
        "gate_up": "INT4_128",
        "down": "INT4_128",
    }


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("fp8 blocks", lambda t, m: t.pop(f"{m}.weight_scale_inv"), r"tensor {m}\.weight_scale_inv is missing"),
        ("fp8 tensor", lambda t, m: t.pop(f"{m}.weight_scale"), r"tensor {m}\.weight_scale is missing"),
        ("fp8 blocks", lambda t, m: set_(t, f"{m}.weight_scale_inv", np.ones((1, 3), np.float32)), r"_inv has shape \[1, 3\]"),
        ("fp8 blocks", lambda t, m: set_(t, f"{m}.weight", np.ones((128, 128), np.float16)), r"{m}\.weight is of type F16; supp"),
        ("fp8 blocks", lambda t, m: set_(t, f"{m}.weight", t[f"{m}.weight"][:64]), r"{m}\.weight has shape \[64, 128\], but"),
        ("fp8 blocks", lambda t, m: nan(t, f"{m}.weight_scale_inv"), r"damaged: tensors of {m} hold weights that are no finite"),
        ("int-quantized channel", lambda t, m: t.pop(f"{m}.weight_scale"), r"tensor {m}\.weight_scale is missing"),
        ("int-quantized group, asymmetric", lambda t, m: t.pop(f"{m}.weight_zero_point"), r"{m}\.weight_zero_point is missing"),
        ("pack-quantized group", lambda t, m: set_(t, f"{m}.weight_shape", np.array([128, 64])), r"shape is \[128, 64\], but"),
        ("pack-quantized group", lambda t, m: set_(t, f"{m}.weight_packed", np.ones((128, 15), np.int32)), r"packed has shape"),
        ("pack-quantized group, reordered", lambda t, m: t.pop(f"{m}.weight_g_idx"), r"{m}\.weight_g_idx is missing: quantiz"),
        ("awq", lambda t, m: t.pop(f"{m}.qzeros"), r"tensor {m}\.qzeros of shape \[1, 16\] is missing"),
        ("awq", lambda t, m: t.pop(f"{m}.qweight"), r"tensor {m}\.qweight of shape \[128, 16\] is missing"),
        ("awq", lambda t, m: set_(t, f"{m}.scales", np.ones((2, 128), np.float16)), r"{m}\.scales has shape \[2, 128\], but"),
        ("awq", lambda t, m: set_(t, f"{m}.qweight", np.ones((128, 16), np.int64)), r"{m}\.qweight is of type I64; supported: I32"),
        ("gptq, reordered", lambda t, m: set_(t, f"{m}.g_idx", np.full(128, 4, np.int32)), r"names group 4, of which there are 4"),
        ("gptq, reordered", lambda t, m: t.pop(f"{m}.g_idx"), r"tensor {m}\.g_idx is missing: quantization_config says"),
        ("gptq", lambda t, m: [t.pop(one) for one in list(t) if m in one], r"{m}\.weight of shape .* is missing"),
    ],
)  # fmt: skip
def test_tensors_that_contradict_the_config(
    tmp_path: Path, name: str, change: Callable[[Tensors, str], object], message: str
) -> None:
    module = "model.layers.1.self_attn.o_proj"
    stored, _ = quantise_tensors(FORMATS[name], TENSORS)
    change(stored, module)
    write_model(tmp_path, {**WIDE, "quantization_config": FORMATS[name].config}, stored)
    with pytest.raises(ModelError, match=message.replace("{m}", re.escape(module))) as raised:
        read_all(tmp_path)
    assert str(tmp_path) in str(raised.value)


def set_(tensors: Tensors, name: str, values: Any) -> None:
    assert name in tensors
    tensors[name] = np.ascontiguousarray(values)


def nan(tensors: Tensors, name: str) -> None:
    tensors[name] = tensors[name].copy()
    tensors[name].flat[0] = np.nan


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "awq",
            {"modules_to_not_convert": ["model.layers.0"]},
            r"tensor model\.layers\.0\..*qweight is of a quantised weight, but by",
        ),
        ("awq", {"group_size": 48}, r"its 128 inputs are no whole groups of 48"),
        ("fp8 blocks", {"modules_to_not_convert": ["down_proj"]}, r"down_proj\.weight_scale_inv is of a quantised weight, but by"),
        ("gptq", {"bits": 8}, r"qzeros has shape \[1, 16\], but the model's sizes ask for \[1, 32\]"),
        (
            "int-quantized channel",
            {"format": "pack-quantized"},
            r"down_proj\.weight is of a quantised weight, but by .* without this",
        ),
        ("gptq", {"dynamic": {r"-:.*up_proj": {}}}, r"up_proj\.\w+ is of a quantised weight, but by quantization_config .* is not"),
    ],
)
def test_a_config_that_contradicts_the_tensors(tmp_path: Path, name: str, change: dict[str, Any], message: str) -> None:
    form = FORMATS[name]
    directory, _ = write(tmp_path, Format({**form.config, **change}, form.store, form.kind))
    with pytest.raises(ModelError, match=message):
        read_all(directory)


def test_what_belongs_to_activations_is_left_out_and_biases_of_zeros(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    form = FORMATS["gptq"]
    stored, _ = quantise_tensors(form, TENSORS)
    modules = [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]
    zeros = {f"{module}.bias": np.zeros(len(stored[f"{module}.scales"][0]), np.float16) for module in modules}
    scales = {
        "model.layers.0.self_attn.k_scale": np.ones((), np.float32),
        "model.layers.0.mlp.up_proj.input_scale": np.ones(1, np.float32),
    }
    config = {**WIDE, "quantization_config": form.config}
    with caplog.at_level(logging.INFO):
        SafetensorsSource(write_model(tmp_path, config, {**stored, **zeros, **scales}))
    assert "gptq, 4 bits in groups of 128: 14 matrices; activations are not quantised" in caplog.text
    assert "14 biases that are nothing but zeros are left out" in caplog.text
    assert "2 scales of activations or of the KV cache are left out" in caplog.text
    zeros[f"{modules[3]}.bias"][5] = 1
    with pytest.raises(ModelError, match=rf"has no use for these tensors: {re.escape(modules[3])}\.bias"):
        SafetensorsSource(write_model(tmp_path, config, {**stored, **zeros, **scales}))


@pytest.mark.parametrize("name", ["fp8 tensor", "awq", "gptq, reordered"])
def test_tied_embeddings_and_biases(tmp_path: Path, name: str) -> None:
    config = {**WIDE, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}
    directory, meant = write(tmp_path, FORMATS[name], config)
    source = SafetensorsSource(directory)
    for part in parts_of(source):
        np.testing.assert_allclose(np.asarray(source.read(part), np.float32), meant[part.name], rtol=2**-23, atol=0)


def test_a_head_that_is_quantised(tmp_path: Path) -> None:
    form = FORMATS["gptq"]
    config = Format({**form.config, "lm_head": True}, form.store, form.kind)
    directory, meant = write(tmp_path, config, chosen=lambda name: is_quantised(name) or name == "lm_head.weight")
    source = SafetensorsSource(directory)
    (head,) = source.model.parameters()[0]["head"].parts
    assert source.stored_kind(head) == "INT4_128"
    np.testing.assert_allclose(source.read(head), meant["lm_head.weight"], rtol=2**-23, atol=0)


def test_modules_that_differ(tmp_path: Path) -> None:
    """GPTQ's `dynamic` says of some that they have more bits, or none fewer."""
    four, eight = FORMATS["gptq"], FORMATS["gptq of 8 bits"]
    stored, meant = quantise_tensors(four, TENSORS, lambda name: is_quantised(name) and "layers.0." in name)
    others, meant_others = quantise_tensors(eight, TENSORS, lambda name: is_quantised(name) and "layers.1.mlp" in name)
    layer = {name: values for name, values in others.items() if "layers.1." in name}
    tensors = {name: values for name, values in stored.items() if "layers.1." not in name} | layer
    dynamic = {r"-:model\.layers\.1\.self_attn": {}, r"+:model\.layers\.1\..*": {"bits": 8}}
    config = {**WIDE, "quantization_config": {**four.config, "dynamic": dynamic}}
    source = SafetensorsSource(write_model(tmp_path, config, tensors))
    kinds = set()
    for part in parts_of(source):
        expected = (meant_others if "layers.1." in part.name else meant)[part.name]
        np.testing.assert_allclose(np.asarray(source.read(part), np.float32), expected, rtol=2**-23, atol=0)
        kinds.add((part.name.split(".")[2] if "layers" in part.name else "", source.stored_kind(part)))
    assert {("0", "INT4_128"), ("1", "INT8_128"), ("1", None), ("", None)} <= kinds


@needs_compiler
@pytest.mark.parametrize("name", ["fp8 blocks of bf16 scales", "awq of small groups"])
def test_mixtures_of_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Each expert's matrices are modules of their own; the kernels keep them as they are, the router is not quantised."""
    monkeypatch.setattr("tpu_worker.platforms.cpu.prefers_blocks", lambda: True)
    monkeypatch.setattr("tpu_worker.platforms.cpu.preferred", lambda: "native")
    config = {**tiny_experts.FAMILIES["qwen3_moe"], "moe_intermediate_size": 32, "mlp_only_layers": [], "decoder_sparse_step": 1}
    stored, meant = quantise_tensors(FORMATS[name], tiny_experts.make_tensors(config))
    source = SafetensorsSource(write_model(tmp_path / "q", {**config, "quantization_config": FORMATS[name].config}, stored))
    plain = SafetensorsSource(write_model(tmp_path / "p", config, meant))
    platform = choose_platform("cpu", "auto", kinds_held(source), BLOCK_SIZE, {32})
    assert platform.products.keeps_blocks == kinds_held(source) == {FORMATS[name].kind}
    token_ids = np.arange(1, 30, dtype=np.int32)
    found, expected = all_logits(source, platform, token_ids), all_logits(plain, make_xla_platform(), token_ids)
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_a_fused_projection(tmp_path: Path) -> None:
    """Phi-3's q, k and v are rows of one quantised weight."""
    _, tensors = reference_of("phi3")
    stored, meant = quantise_tensors(FORMATS["awq of small groups"], tensors, lambda name: "qkv_proj" in name or "o_proj" in name)
    config = {
        **tiny_dense.FAMILIES["phi3"],
        "quantization_config": {**FORMATS["awq of small groups"].config, "modules_to_not_convert": ["mlp"]},
    }
    source = SafetensorsSource(write_model(tmp_path, config, stored))
    qkv = source.model.parameters()[1]["qkv"]
    whole = np.concatenate([source.read(part) for part in qkv.parts])
    np.testing.assert_allclose(whole, meant["model.layers.0.self_attn.qkv_proj.weight"], rtol=2**-23, atol=0)
    blocks = np.concatenate([source.read_blocks(part).values() for part in qkv.parts])
    np.testing.assert_array_equal(blocks, whole)


def test_the_text_of_a_model_that_also_sees(tmp_path: Path) -> None:
    """The config's lists name modules as the file does, or as the text alone would."""
    _, tensors = reference_of("gemma3")
    form = FORMATS["float-quantized tensor"]
    stored, meant = quantise_tensors(
        form, tensors, lambda name: is_quantised(name) and "k_proj" not in name and "q_proj" not in name
    )
    renamed = {name.replace("model.", "model.language_model.", 1): values for name, values in stored.items()}
    seeing = {"model.vision_tower.layers.0.mlp.fc1.weight": tensors["model.norm.weight"]}
    ignored = ["re:.*vision_tower.*", r"re:model\.language_model\..*k_proj", r"re:model\.layers\..*q_proj"]
    text = {key: value for key, value in tiny_dense.FAMILIES["gemma3"].items() if key != "architectures"}
    whole = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text}
    config = {**whole, "quantization_config": {**form.config, "ignore": ignored}}
    source = SafetensorsSource(write_model(tmp_path, config, {**renamed, **seeing}))
    for part in parts_of(source):
        np.testing.assert_allclose(np.asarray(source.read(part), np.float32), meant[part.name], rtol=2**-23, atol=0)
        assert (source.stored_kind(part) is None) == (part.name[:-7].endswith(("q_proj", "k_proj")) or not is_quantised(part.name))


def test_a_config_that_says_nothing(tmp_path: Path) -> None:
    stored, _ = quantise_tensors(FORMATS["fp8 tensor"], TENSORS)
    with pytest.raises(
        ModelError, match=r"safetensors: tensor .*weight_scale is of a quantised weight, but .*config\.json says in no"
    ):
        read_all(write_model(tmp_path, WIDE, stored))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("fp8 blocks", "auto"),
        ("pack-quantized group, asymmetric", "bfloat16"),
        ("gptq, reordered", "bfloat16"),
        ("experts", "auto"),
    ],
)
def test_shards_change_no_token(tmp_path: Path, name: str, dtype: str) -> None:
    if name == "experts":
        form = FORMATS["awq of small groups"]
        config = {**tiny_experts.FAMILIES["qwen3_moe"], "moe_intermediate_size": 32, "mlp_only_layers": []}
        stored, _ = quantise_tensors(
            form, tiny_experts.make_tensors(config), lambda name: is_quantised(name) and "mlp.up" not in name
        )
        directory = write_model(tmp_path, {**config, "quantization_config": form.config}, stored)
    else:
        directory, _ = write(tmp_path, FORMATS[name])
    command = [sys.executable, "-m", "tests.tpu_worker.mesh.sharded_runs", str(directory), dtype, "4", "1", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    one, two = (json.loads(done.stdout)[shards]["outputs"] for shards in ("1", "2"))
    assert [two[params]["tokens"] for params in one] == [one[params]["tokens"] for params in one]
    for found, expected in zip(two["scored"]["scores"], one["scored"]["scores"], strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.05 if dtype == "bfloat16" else 1e-3)


def test_scales_that_are_powers_of_two(tmp_path: Path) -> None:
    """Those of newer DeepSeek checkpoints are exponents alone."""
    store = float8(128, 128, "weight_scale_inv", ml_dtypes.float8_e8m0fnu)
    form = Format(FORMATS["fp8 blocks"].config, store, "FP8_128")
    directory, meant = write(tmp_path, form)
    source = SafetensorsSource(directory)
    for part in parts_of(source):
        np.testing.assert_allclose(np.asarray(source.read(part), np.float32), meant[part.name], rtol=2**-23, atol=0)
