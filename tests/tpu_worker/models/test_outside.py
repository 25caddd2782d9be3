"""The family that docs/add-a-model.md adds from outside: what it computes, and what is said of those that cannot be loaded."""

import sys
from pathlib import Path

import numpy as np
import pytest

from protocol.errors import ModelError
from protocol.model_families import OutsideFamily
from tests.margins import Margins
from tests.outside_family import TWIN, install, twin_logits, twin_tensors
from tests.tpu_worker.models.test_families import PLATFORMS, all_logits, rounding
from tests.tpu_worker.tiny_models import write_model
from tpu_worker.models.registry import load_family
from tpu_worker.platforms.platform import Platform
from tpu_worker.weights.safetensors import SafetensorsSource


@pytest.fixture
def twin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of a model of the family, which is installed."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(install(site))
    monkeypatch.delitem(sys.modules, "twodeep_twin", raising=False)
    return write_model(tmp_path / "model", TWIN, twin_tensors())


@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda platform: platform.name)
def test_it_computes_what_the_document_says(margins: Margins, twin: Path, platform: Platform) -> None:
    token_ids = np.random.default_rng(1).integers(0, TWIN["vocab_size"], 37).astype(np.int32)
    logits = all_logits(SafetensorsSource(twin), platform, token_ids)
    margins.check_rounding(f"twin, {platform.name}", logits, twin_logits(twin_tensors(), token_ids), rounding(TWIN))


@pytest.mark.parametrize(
    ("target", "architecture", "message"),
    [
        ("twodeep_twig:FAMILY", "TwinForCausalLM", "cannot be loaded: ModuleNotFoundError: No module named 'twodeep_twig'"),
        ("twodeep_twin:FAMILIES", "TwinForCausalLM", "cannot be loaded: AttributeError"),
        ("twodeep_twin:Config", "TwinForCausalLM", "is a StructMeta, a tpu_worker.models.family.Family is wanted"),
        (
            "twodeep_twin:FAMILY",
            "TwigForCausalLM",
            "its family lists TwinForCausalLM as `huggingface`: the name of the entry point",
        ),
    ],
)
def test_one_that_cannot_be_loaded_is_named_with_its_distribution(twin: Path, target: str, architecture: str, message: str) -> None:
    with pytest.raises(ModelError, match=rf"'{architecture}' \({target}\) of the distribution twig 3: {message}"):
        load_family(OutsideFamily(architecture, target, "twig 3"), "huggingface")
