"""Random weights from a config.json alone: the same for a seed, of every family, and no reason for a model to overflow."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol.config import EngineConfig
from protocol.errors import ModelError
from tests.tpu_worker import tiny_dense, tiny_experts, tiny_models
from tests.tpu_worker.compiler import needs_compiler
from tests.tpu_worker.models.test_families import BLOCK_SIZE, all_logits
from tests.tpu_worker.quantised_checkpoints import FORMATS, WIDE
from tpu_worker.models.spec import Part
from tpu_worker.platforms.choose import choose_platform
from tpu_worker.platforms.cpu import make_xla_platform
from tpu_worker.weights.dummy import DummySource
from tpu_worker.weights.load import kinds_held, open_source

FAMILIES: dict[str, dict[str, Any]] = {**tiny_models.FAMILIES, **tiny_dense.FAMILIES, **tiny_experts.FAMILIES}
TOKENS = np.arange(1, 40, dtype=np.int32)


def write(directory: Path, config: dict[str, Any]) -> Path:
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def parts_of(source: DummySource) -> list[Part]:
    return [part for group in source.model.parameters() for one in group.values() for part in one.parts]


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_follow_from_seed_and_name(tmp_path: Path, name: str) -> None:
    first, same, other = (DummySource(write(tmp_path, FAMILIES[name]), seed) for seed in (3, 3, 4))
    parts = parts_of(first)
    for part in parts:
        values = np.asarray(first.read(part), np.float32)
        assert values.shape == part.shape
        assert np.isfinite(values).all()
        if len(part.shape) > 1:
            assert 0.5 < values.std() * np.sqrt(part.shape[-1]) < 2
            assert (values[0] != values[1]).any()
    matrices = [part for part in reversed(parts) if len(part.shape) > 1]
    for part in matrices:  # whatever was read before
        np.testing.assert_array_equal(same.read(part), first.read(part))
    assert (np.asarray(other.read(matrices[0])) != np.asarray(first.read(matrices[0]))).any()
    assert (np.asarray(first.read(matrices[0])).flat[:8] != np.asarray(first.read(matrices[1])).flat[:8]).any()


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ("gemma2", "gpt_oss") else [pytest.mark.slow]) for n in FAMILIES]
)
def test_logits_are_sensible(tmp_path: Path, name: str) -> None:
    logits = all_logits(DummySource(write(tmp_path, FAMILIES[name])), make_xla_platform(), TOKENS)
    assert np.isfinite(logits).all()
    assert 0.01 < logits.std() < 30
    assert len(set(logits.argmax(axis=1).tolist())) > 3


@needs_compiler
@pytest.mark.parametrize("name", ["fp8 blocks", "int-quantized channel", "pack-quantized group, asymmetric", "awq", "mxfp4"])
def test_a_config_that_is_quantised_is_kept_as_its_checkpoints_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("tpu_worker.platforms.cpu.prefers_blocks", lambda: True)
    monkeypatch.setattr("tpu_worker.platforms.cpu.preferred", lambda: "native")
    if name == "mxfp4":
        config, kind = {**tiny_experts.FAMILIES["gpt_oss"], "quantization_config": {"quant_method": "mxfp4"}}, "MXFP4"
        config |= {"hidden_size": 64, "intermediate_size": 64}
    else:
        config, kind = {**WIDE, "quantization_config": FORMATS[name].config}, FORMATS[name].kind
    source = DummySource(write(tmp_path, config))
    assert kinds_held(source) == {kind}
    kept = [part for part in parts_of(source) if len(part.shape) == 2 and source.stored_kind(part) is not None]
    for part in kept[:4]:
        blocks = source.read_blocks(part)
        assert blocks.shape == part.shape
        assert 0.4 < blocks.values().std() * np.sqrt(part.shape[1]) < 2
    platform = choose_platform("cpu", "auto", kinds_held(source), BLOCK_SIZE, {32})
    assert np.isfinite(all_logits(source, platform, TOKENS)).all()


def test_the_flag_and_the_seed_choose_it(tmp_path: Path) -> None:
    def config(load_format: Any, seed: int | None = None) -> EngineConfig:
        return EngineConfig(
            model_path=str(write(tmp_path, WIDE)),
            model_format="huggingface",
            served_model_names=("tiny",),
            load_format=load_format,
            seed=seed,
        )

    zero, none, one = (open_source(config("dummy", seed)) for seed in (0, None, 1))
    (table,) = zero.model.parameters()[0]["embedding"].parts
    np.testing.assert_array_equal(zero.read(table), none.read(table))
    assert (zero.read(table) != one.read(table)).any()
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor"):
        open_source(config("auto"))
