"""Weights arrive as they were written, and files that cannot be right are named."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from protocol.codec import Float32Array
from protocol.config import Quantization
from protocol.errors import ConfigError, ModelError
from protocol.gguf_header import read_gguf_header
from protocol.model_files import facts_from_huggingface
from tests.margins import ROUNDOFF
from tests.tpu_worker.compiler import needs_compiler
from tests.tpu_worker.tiny_models import CONFIG, FAMILIES, Tensors, make_tensors, write_gguf, write_model
from tpu_worker.mesh.layout import make_layout
from tpu_worker.models.family import Weights
from tpu_worker.platforms import xla
from tpu_worker.platforms.choose import choose_platform
from tpu_worker.platforms.cpu.native import build
from tpu_worker.weights.gguf import GgufSource, unpermuted_rows
from tpu_worker.weights.kept import describe_weights
from tpu_worker.weights.load import WeightLoader, kinds_held
from tpu_worker.weights.safetensors import SafetensorsSource
from tpu_worker.weights.source import WeightSource

TENSORS = make_tensors(CONFIG)


def load(source: WeightSource) -> Weights:
    loader = WeightLoader(source, xla.PRODUCTS, make_layout(jax.devices()[:1]), 16, lambda *_: None)
    return loader.load_rest(loader.load_first())


def f32(values: object) -> Float32Array:
    return np.asarray(values).astype(np.float32)


def check_against(weights: Weights, tensors: Tensors, tolerance: float) -> None:
    expected = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}

    def same(found: object, *names: str) -> None:
        np.testing.assert_allclose(f32(found), np.concatenate([expected[name] for name in names]), atol=tolerance)

    same(weights["embedding"], "model.embed_tokens.weight")
    if "lm_head.weight" in expected:
        same(weights["head"].values, "lm_head.weight")
    else:
        assert "head" not in weights  # tied embeddings are in memory once
    same(weights["final_norm"], "model.norm.weight")
    assert weights["layers"].where == ((0, 0), (0, 1))
    for index in range(2):
        layer = weights["layers"].take(index)
        prefix = f"model.layers.{index}."
        same(layer["qkv"].values, *(f"{prefix}self_attn.{p}_proj.weight" for p in "qkv"))
        same(layer["output"].values, prefix + "self_attn.o_proj.weight")
        same(layer["gate_up"].values, prefix + "mlp.gate_proj.weight", prefix + "mlp.up_proj.weight")
        same(layer["down"].values, prefix + "mlp.down_proj.weight")
        same(layer["attention_norm"], prefix + "input_layernorm.weight")
        same(layer["mlp_norm"], prefix + "post_attention_layernorm.weight")


@pytest.mark.parametrize("shards", [1, 3])
def test_safetensors(tmp_path: Path, shards: int) -> None:
    source = SafetensorsSource(write_model(tmp_path, CONFIG, TENSORS, shards))
    check_against(load(source), TENSORS, 0.0)


def test_safetensors_of_a_model_that_was_saved_without_its_head(tmp_path: Path) -> None:
    """As models for embeddings are: their tensors have no prefix."""
    config, tensors = {**CONFIG, "tie_word_embeddings": True}, make_tensors({**CONFIG, "tie_word_embeddings": True})
    path = write_model(tmp_path, config, {name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    assert facts_from_huggingface(path).architecture == "LlamaForCausalLM"
    check_against(load(SafetensorsSource(path)), tensors, 0.0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_safetensors_of_other_float_types(tmp_path: Path, dtype: type) -> None:
    tensors: Tensors = {name: tensor.astype(dtype) for name, tensor in TENSORS.items()}
    check_against(load(SafetensorsSource(write_model(tmp_path, CONFIG, tensors))), TENSORS, 0.0)


@pytest.mark.parametrize(
    ("kind", "tolerance"), [(GGMLQuantizationType.F32, 0.0), (GGMLQuantizationType.Q8_0, 0.02), (GGMLQuantizationType.Q4_1, 0.2)]
)
def test_gguf(tmp_path: Path, kind: GGMLQuantizationType, tolerance: float) -> None:
    source = GgufSource(write_gguf(tmp_path / "m.gguf", CONFIG, TENSORS, kind))
    check_against(load(source), TENSORS, tolerance)
    ours, theirs = source.model.spec, SafetensorsSource(write_model(tmp_path / "hf", CONFIG, TENSORS)).model.spec
    assert ours.norm_eps == np.float32(theirs.norm_eps)  # GGUF holds it in single precision
    assert dataclasses.replace(ours, architecture=theirs.architecture, norm_eps=theirs.norm_eps) == theirs


def test_unpermuted_rows_written_out() -> None:
    """One head of six rows: the file holds the pairs (0, 3), (1, 4), (2, 5) side by side."""
    rows = np.array([0, 3, 1, 4, 2, 5])
    assert rows[unpermuted_rows(6, 1)].tolist() == [0, 1, 2, 3, 4, 5]
    two_heads = np.concatenate([rows, rows + 10])
    assert two_heads[unpermuted_rows(12, 2)].tolist() == [0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15]


def bytes_of_blocks(kind: str, bits: int | None) -> int:
    """Of 32 weights, as the file has them; what is none of them was made of eight bits."""
    return {"Q4_0": 18, "Q4_1": 20}.get(kind, 34) if bits else 34


@needs_compiler
@pytest.mark.parametrize(
    ("first", "second", "bits"),
    [
        ("Q4_1", "Q4_1", (4, 4)),
        ("Q4_0", "Q4_0", (4, 4)),
        ("Q8_0", "Q8_0", (8, 8)),
        ("Q4_1", "Q8_0", (4, 8)),
        ("F32", "F32", (None, None)),
    ],
)
@pytest.mark.parametrize("quantization", ["auto", "none", "int8"])
def test_gguf_in_blocks(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    quantization: Quantization,
    first: str,
    second: str,
    bits: tuple[int | None, int | None],
) -> None:
    """Matrices are kept as the file holds them, also where layers differ, unless bfloat16 is asked for."""
    monkeypatch.setattr("tpu_worker.platforms.cpu.prefers_blocks", lambda: True)
    monkeypatch.setattr("tpu_worker.platforms.cpu.preferred", lambda: "native")
    source = GgufSource(write_gguf(tmp_path / "m.gguf", CONFIG, TENSORS, GGMLQuantizationType[first], GGMLQuantizationType[second]))
    assert kinds_held(source) == {kind for kind in (first, second) if kind != "F32"}
    products = choose_platform("cpu", quantization, kinds_held(source), 16, {32}).products
    loader = WeightLoader(source, products, make_layout(jax.devices()[:1]), 16, lambda *_: None)
    weights = loader.load_rest(loader.load_first())
    columns = build.library("matmul").twodeep_panel_columns()
    for index in range(2):
        parameters = source.model.parameters()[1 + index]
        for name in ("qkv", "output", "down"):
            expected = np.concatenate([f32(source.read(part)) for part in parameters[name].parts])
            weight = weights["layers"].take(index)[name]
            found = np.asarray(jax.jit(products.linear)(np.eye(expected.shape[1], dtype=np.float32), weight)).T
            kept = bits[index] if name != "down" else None  # its 80 inputs are no whole blocks: in the file it is float32
            if quantization == "none" or (quantization == "auto" and kept is None):
                tolerance = 2**-8 * np.abs(expected).max()
                assert weight.panels.stack.dtype != np.uint8
            else:
                # What is kept is multiplied by 1: quants of 4 bits and 128 times a scale, of which four numbers are rounded.
                largest = np.abs(expected).max()
                tolerance = 4 * ROUNDOFF * (128 + 15) * 2 * largest / 15 if kept else 0.52 * largest / 127
                assert weight.panels.stack.shape[-1] == columns * bytes_of_blocks(first if index == 0 else second, kept)
            np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@needs_compiler
@pytest.mark.parametrize(
    ("quantization", "kept"),
    [
        ("auto", r"Q8_0 \d+ KB, bf16 \d+ KB, Q4_1 \d+ KB.*"),
        ("none", r"bf16 \d+ KB.* \(Q4_1, Q8_0 dequantised\)"),
    ],
)
def test_how_weights_are_kept_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: Quantization, kept: str
) -> None:
    monkeypatch.setattr("tpu_worker.platforms.cpu.prefers_blocks", lambda: True)
    monkeypatch.setattr("tpu_worker.platforms.cpu.preferred", lambda: "native")
    kinds = (GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0)
    source = GgufSource(write_gguf(tmp_path / "m.gguf", CONFIG, TENSORS, *kinds))
    products = choose_platform("cpu", quantization, kinds_held(source), 16, {32}).products
    loader = WeightLoader(source, products, make_layout(jax.devices()[:1]), 16, lambda *_: None)
    said = describe_weights(loader.load_rest(loader.load_first()), kinds_held(source))
    assert re.fullmatch(kept, said), said


@needs_compiler
def test_int8_that_no_file_holds_is_called_so(tmp_path: Path) -> None:
    source = SafetensorsSource(write_model(tmp_path, CONFIG, TENSORS))
    products = choose_platform("cpu", "int8", (), 16, {32}).products
    loader = WeightLoader(source, products, make_layout(jax.devices()[:1]), 16, lambda *_: None)
    said = describe_weights(loader.load_rest(loader.load_first()), kinds_held(source))
    assert re.fullmatch(r"int8 \d+ KB, bf16 \d+ KB(, f32 \d+ KB)?", said), said
    plain = describe_weights(load(source), ())
    assert re.fullmatch(r"bf16 \d+ KB(, f32 \d+ KB)?", plain), plain


@needs_compiler
@pytest.mark.parametrize("kernels", ["C++", "XLA"])
@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "F16"])
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, kernels: str) -> None:
    monkeypatch.setattr("tpu_worker.platforms.cpu.prefers_blocks", lambda: kernels == "C++")
    path = write_gguf(tmp_path / "m.gguf", CONFIG, TENSORS, GGMLQuantizationType[kind])
    info = read_gguf_header(path).tensors["blk.1.attn_k.weight"]
    data = bytearray(path.read_bytes())
    data[info.offset : info.offset + 2] = np.float16(np.nan).tobytes()
    path.write_bytes(data)
    source = GgufSource(path)
    products = choose_platform("cpu", "auto", kinds_held(source), 16, {32}).products
    loader = WeightLoader(source, products, make_layout(jax.devices()[:1]), 16, lambda *_: None)
    with pytest.raises(ModelError, match=r"m\.gguf: damaged: tensor blk\.1\.attn_k\.weight holds weights that are no"):
        loader.load_rest(loader.load_first())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, -np.nan])
def test_floats_that_are_no_numbers_are_named(tmp_path: Path, dtype: type, number: float) -> None:
    tensors: Tensors = {name: tensor.astype(dtype) for name, tensor in TENSORS.items()}
    read = load(SafetensorsSource(write_model(tmp_path / "sound", CONFIG, tensors)))
    check_against(read, TENSORS, 0.0)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = number
    source = SafetensorsSource(write_model(tmp_path / "damaged", CONFIG, tensors))
    with pytest.raises(
        ModelError, match=r"model\.safetensors: damaged: tensor model\.layers\.1\.mlp\.up_proj\.weight holds weights"
    ):
        load(source)


def test_kernels_of_a_file_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler there are none, and only who asks for them by name need know; other devices have none."""
    monkeypatch.setattr(build, "available", lambda *_: False)
    assert choose_platform("cpu", "auto", ["Q4_1"], 16, {32}).name == "XLA"
    assert choose_platform("tpu", "auto", ["Q4_1"], 16, {32}).name == "Pallas"
    assert choose_platform("tpu", "int8", ["Q4_1"], 16, {32}).name == "Pallas", "in rows of eight bits, not in blocks"
    with pytest.raises(ConfigError, match=r"--quantization int8 needs the C\+\+ kernels"):
        choose_platform("cpu", "int8", ["Q4_1"], 16, {32})


def test_gguf_cut_short(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", CONFIG, TENSORS)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"m\.gguf: cut short: tensor .* ends at byte"):
        GgufSource(path)


def test_gguf_with_a_missing_tensor(tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in TENSORS.items() if name != "model.layers.1.mlp.up_proj.weight"}
    source = GgufSource(write_gguf(tmp_path / "m.gguf", CONFIG, tensors))
    with pytest.raises(ModelError, match=r"m\.gguf: tensor model\.layers\.1\.mlp\.up_proj\.weight of shape \[80, 64\] is missing"):
        load(source)


def test_gguf_rope_factors_divide_the_frequencies(tmp_path: Path) -> None:
    source = GgufSource(write_gguf(tmp_path / "m.gguf", FAMILIES["llama"], make_tensors(FAMILIES["llama"])))
    (rope,) = source.model.spec.ropes
    assert rope.scaling is None
    scaled = SafetensorsSource(write_model(tmp_path / "hf", FAMILIES["llama"], make_tensors(FAMILIES["llama"])))
    expected = scaled.inverse_frequencies(scaled.model.spec.ropes[0])
    assert (expected < rope.inverse_frequencies() * 0.99).any()
    np.testing.assert_allclose(source.inverse_frequencies(rope), expected, rtol=1e-6)


def test_safetensors_with_a_missing_tensor(tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in TENSORS.items() if name != "lm_head.weight"}
    source = SafetensorsSource(write_model(tmp_path, CONFIG, tensors))
    with pytest.raises(ModelError, match=r"tensor lm_head\.weight of shape \[96, 64\] is missing"):
        load(source)


def test_safetensors_with_a_wrong_shape(tmp_path: Path) -> None:
    tensors: Tensors = {**TENSORS, "model.layers.0.mlp.down_proj.weight": np.zeros((64, 81), ml_dtypes.bfloat16)}
    source = SafetensorsSource(write_model(tmp_path, CONFIG, tensors))
    with pytest.raises(ModelError, match=r"down_proj\.weight has shape \[64, 81\], but the model's sizes ask for \[64, 80\]"):
        load(source)


def test_safetensors_of_integers(tmp_path: Path) -> None:
    tensors: Tensors = {**TENSORS, "model.norm.weight": np.zeros(64, np.int8)}
    with pytest.raises(ModelError, match=r"model\.norm\.weight is of type I8"):
        load(SafetensorsSource(write_model(tmp_path, CONFIG, tensors)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "model.safetensors").unlink(), "neither model.safetensors nor"),
        (lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-10]), "cut short"),
        (lambda d: (d / "config.json").unlink(), "config.json: No such file"),
        (lambda d: (d / "config.json").write_text("{"), "config.json: "),
        (lambda d: (d / "model.safetensors.index.json").write_text("{}"), "no weight_map"),
        (lambda d: (d / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}'), "no plain file name"),
        (lambda d: (d / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}'), "not here"),
    ],
)
def test_damaged_directories(tmp_path: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    write_model(tmp_path, CONFIG, TENSORS)
    damage(tmp_path)
    with pytest.raises(ModelError, match=message):
        SafetensorsSource(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["BertModel"]}, "architecture 'BertModel' is not supported, only LlamaForCausalLM"),
        ({"architectures": None}, "architectures is missing"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_scaling": {"rope_type": "ntk", "factor": 4.0}}, "rope scaling 'ntk'"),
        ({"quantization_config": {"quant_method": "hqq"}}, "quantization_config.quant_method 'hqq' is not supported"),
        ({"num_key_value_heads": 3}, "4 heads cannot share 3"),
        ({"num_hidden_layers": 0}, "0 layers: there must be between 1 and"),
        ({"num_hidden_layers": 2**40}, "layers: there must be between 1 and"),
        ({"sliding_window": 64}, "LlamaForCausalLM has no windows"),
        ({"architectures": [7]}, "architecture 7 is not supported"),
        ({"vocab_size": "many"}, "vocab_size"),
    ],
)
def test_unsupported_configurations(tmp_path: Path, change: dict[str, object], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **change}))
    with pytest.raises(ModelError, match=message):
        SafetensorsSource(tmp_path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.self_attn.q_proj.bias", (128,)),  # the configuration denies it
        ("model.layers.1.self_attn.k_norm.weight", (32,)),
        ("model.layers.2.input_layernorm.weight", (64,)),  # a layer too many
        ("model.layers.0.mlp.experts.3.w1.weight", (80, 64)),
        ("score.weight", (2, 64)),
    ],
)
def test_tensors_that_the_model_has_no_use_for_are_refused(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    tensors: Tensors = {**TENSORS, name: np.zeros(shape, ml_dtypes.bfloat16)}
    with pytest.raises(ModelError, match=rf"a LlamaForCausalLM of 2 layers, .* no use for these tensors: {re.escape(name)};"):
        SafetensorsSource(write_model(tmp_path, CONFIG, tensors))


@pytest.mark.parametrize(
    "name", ["blk.0.attn_q_norm.weight", "blk.1.attn_q.bias", "blk.2.attn_norm.weight", "blk.0.ffn_gate_inp.weight"]
)
def test_gguf_tensors_that_the_model_has_no_use_for_are_refused(tmp_path: Path, name: str) -> None:
    tensors: Tensors = {**TENSORS, name: np.zeros(64, np.float32)}
    with pytest.raises(ModelError, match=rf"a llama of 2 layers, .* no use for these tensors: {re.escape(name)};"):
        GgufSource(write_gguf(tmp_path / "m.gguf", CONFIG, tensors))


def test_a_tied_head_may_be_stored_but_not_differ(tmp_path: Path) -> None:
    config = {**CONFIG, "tie_word_embeddings": True}
    same: Tensors = {**TENSORS, "lm_head.weight": TENSORS["model.embed_tokens.weight"]}
    assert SafetensorsSource(write_model(tmp_path / "same", config, same, shards=3)).model.spec.tied_embeddings
    with pytest.raises(ModelError, match=r"no use for these tensors: lm_head\.weight"):
        SafetensorsSource(write_model(tmp_path / "different", config, TENSORS))


def test_frequencies_that_older_files_store_are_passed_over(tmp_path: Path) -> None:
    tensors: Tensors = {**TENSORS, "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(16, np.float32)}
    check_against(load(SafetensorsSource(write_model(tmp_path, CONFIG, tensors))), TENSORS, 0.0)
