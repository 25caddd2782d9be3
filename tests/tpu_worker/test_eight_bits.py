"""Weights that are kept in eight bits with a scale for each output, where XLA multiplies."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from protocol.codec import Float32Array
from protocol.errors import ModelError
from tests.margins import Margins
from tests.tpu_worker import tiny_experts
from tests.tpu_worker.models.test_families import all_logits, rounding
from tests.tpu_worker.quantised_checkpoints import FORMATS, WIDE, quantise_tensors
from tests.tpu_worker.tiny_models import Tensors, make_tensors, reference_logits, write_model
from tpu_worker.mesh.layout import make_layout
from tpu_worker.platforms.cpu import make_xla_platform
from tpu_worker.platforms.xla import make_platform, make_products
from tpu_worker.weights.kept import describe_weights
from tpu_worker.weights.load import WeightLoader, kinds_held
from tpu_worker.weights.safetensors import SafetensorsSource
from tpu_worker.weights.scaled_rows import NarrowType, quantise_rows

KINDS: tuple[NarrowType, ...] = ("int8", "fp8")
TOKENS = np.random.default_rng(1).integers(0, WIDE["vocab_size"], 37).astype(np.int32)
WEIGHTS = arrays.arrays(np.float32, (3, 24), elements=st.floats(-(2.0**100), 2.0**100, width=32) | st.sampled_from([0.0, 1.0]))


def bound_of(weight: npt.NDArray[Any], kind: NarrowType) -> npt.NDArray[np.float64]:
    """How far each number may be off, as `scaled_rows` says; quotients and products are rounded to float32 besides."""
    wide = np.abs(np.asarray(weight, np.float64))
    largest = wide.max(axis=-1, keepdims=True)
    bound: npt.NDArray[np.float64] = largest / 254 if kind == "int8" else np.maximum(wide / 16, largest * 2.0**-10 / 448)
    bound += largest * 2.0**-20 + 448 * 2.0**-126  # of less than float32's normal numbers nothing is kept
    return bound


@pytest.mark.parametrize("kind", KINDS)
@given(weight=WEIGHTS)
def test_weights_are_as_near_as_is_said(kind: NarrowType, weight: Float32Array) -> None:
    rows = quantise_rows(weight, kind)
    assert rows.numbers.dtype == (np.int8 if kind == "int8" else ml_dtypes.float8_e4m3fn) and rows.scales.dtype == np.float32
    assert (np.abs(rows.values().astype(np.float64) - weight) <= bound_of(weight, kind)).all()


def rounded(tensors: Tensors, kind: NarrowType, left: Callable[[str], bool] = lambda _: False) -> Tensors:
    """What a checkpoint's matrices are, once loaded. left: which stay as they are."""
    return {
        name: quantise_rows(values, kind).values() if values.ndim == 2 and not left(name) else values
        for name, values in tensors.items()
    }


def dtypes_of(source: SafetensorsSource, kind: NarrowType | None, **more: Any) -> dict[str, int]:
    """Bytes of the weights as loaded, by type."""
    loader = WeightLoader(source, make_products("bfloat16", kind, **more), make_layout(jax.devices()[:1]), 16, lambda *_: None)
    sizes: dict[str, int] = {}
    for leaf in jax.tree.leaves(loader.load_rest(loader.load_first())):
        sizes[str(leaf.dtype)] = sizes.get(str(leaf.dtype), 0) + leaf.nbytes
    return sizes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_those_of_the_rounded_weights(margins: Margins, tmp_path: Path, kind: NarrowType, tied: bool) -> None:
    config = {**WIDE, "tie_word_embeddings": tied}
    tensors = make_tensors(config)
    source = SafetensorsSource(write_model(tmp_path, config, tensors))
    found = all_logits(source, make_platform("bfloat16", narrows_to=kind), TOKENS)
    expected = reference_logits(config, rounded(tensors, kind), TOKENS)
    margins.check_rounding(f"logits of weights in {kind}", found, expected, rounding(config))
    matrices = sum(values.size for values in tensors.values() if values.ndim == 2)
    sizes = dtypes_of(source, kind)
    assert sizes.get("int8" if kind == "int8" else "float8_e4m3fn") == matrices  # tied embeddings once, and nothing in bfloat16


@pytest.mark.parametrize(
    ("name", "kind"), [("int-quantized channel", "int8"), ("float-quantized channel", "fp8"), ("fp8 tensor", "fp8")]
)
def test_what_files_hold_so_stays_as_it_is(tmp_path: Path, name: str, kind: NarrowType) -> None:
    form = FORMATS[name]
    stored, meant = quantise_tensors(form, make_tensors(WIDE))
    source = SafetensorsSource(write_model(tmp_path, {**WIDE, "quantization_config": form.config}, stored))
    narrow = [
        part for group in source.model.parameters() for one in group.values() for part in one.parts if source.narrow_type(part)
    ]
    assert len(narrow) == 2 * 7 and {source.narrow_type(part) for part in narrow} == {kind}
    for part in narrow:
        np.testing.assert_allclose(source.read_narrow(part).values(), meant[part.name], rtol=2**-23, atol=0)
    size = sum(np.prod(part.shape) for part in narrow)
    dtype = "int8" if kind == "int8" else "float8_e4m3fn"
    assert dtypes_of(source, None)[dtype] == size
    assert dtype not in dtypes_of(source, None, keeps_narrow=False)
    products = make_products("bfloat16")
    loader = WeightLoader(source, products, make_layout(jax.devices()[:1]), 16, lambda *_: None)
    said = describe_weights(loader.load_rest(loader.load_first()), kinds_held(source))
    assert re.search(rf"\b{kind} \d+ KB", said) and "dequantised" not in said


def test_zero_points_that_the_config_denies_are_refused(tmp_path: Path) -> None:
    """A file with 0 for each is fine."""
    form, module = FORMATS["int-quantized channel"], "model.layers.1.mlp.down_proj"
    stored, _ = quantise_tensors(form, make_tensors(WIDE))
    for zero in (0, 3):
        zeros = np.full(stored[f"{module}.weight_scale"].shape, zero, np.int8)
        tensors = {**stored, f"{module}.weight_zero_point": zeros}
        source = SafetensorsSource(write_model(tmp_path / str(zero), {**WIDE, "quantization_config": form.config}, tensors))
        if zero == 0:
            dtypes_of(source, None)
        else:
            with pytest.raises(
                ModelError, match=rf"{re.escape(module)} has zero points other than 0, but by quantization_config in"
            ):
                dtypes_of(source, None)
        dtypes_of(source, None, keeps_narrow=False)


@pytest.mark.parametrize("kind", KINDS)
def test_experts(margins: Margins, tmp_path: Path, kind: NarrowType) -> None:
    """Each has scales of its own; the router, which is small and decides, stays as it is."""
    config = tiny_experts.FAMILIES["qwen3_moe"]
    tensors = tiny_experts.make_tensors(config)
    source = SafetensorsSource(write_model(tmp_path / "m", config, tensors))
    plain = SafetensorsSource(write_model(tmp_path / "p", config, rounded(tensors, kind, lambda name: "mlp.gate." in name)))
    found = all_logits(source, make_platform("bfloat16", narrows_to=kind), TOKENS[:29] % config["vocab_size"])
    expected = all_logits(plain, make_xla_platform("float32"), TOKENS[:29] % config["vocab_size"])
    margins.check(f"logits of experts in {kind}", float(np.abs(found - expected).max()), 0.1 * float(np.abs(expected).max()))


@pytest.mark.slow
@pytest.mark.parametrize(("quantization", "kv_cache_dtype"), [("int8", "int8"), ("fp8", "fp8_e4m3")])
def test_shards_change_no_token(tmp_path: Path, quantization: str, kv_cache_dtype: str) -> None:
    directory = write_model(tmp_path, WIDE, make_tensors(WIDE))
    command = [sys.executable, "-m", "tests.tpu_worker.mesh.sharded_runs", str(directory), "bfloat16", "64"]
    done = subprocess.run(
        [*command, f"1:{quantization}:{kv_cache_dtype}", f"2:{quantization}:{kv_cache_dtype}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one, two = json.loads(done.stdout).values()
    assert two["weights"].startswith(quantization) and two["kv_cache_dtype"] == one["kv_cache_dtype"] == kv_cache_dtype
    assert {name: found["tokens"] for name, found in two["outputs"].items()} == {
        name: found["tokens"] for name, found in one["outputs"].items()
    }
