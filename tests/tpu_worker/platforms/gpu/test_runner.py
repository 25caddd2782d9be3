"""The real runner on the GPU's platform, its kernels interpreted: tables, the cache's layout and its donation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.margins import Margins
from tests.tpu_worker import tiny_dense, tiny_experts
from tests.tpu_worker.models.test_dense import reference_of
from tests.tpu_worker.platforms.tpu.test_runner import check_same
from tests.tpu_worker.tiny_models import CONFIG, Tensors, make_tensors
from tpu_worker.platforms import gpu


@pytest.mark.slow
@pytest.mark.timeout(900)  # interpreted kernels take twenty seconds to compile, and minutes where others compile too
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_same_tokens_as_without_its_kernels(margins: Margins, tmp_path: Path, family: str) -> None:
    """Gemma 2 caps scores and has windows, gpt-oss has sinks."""
    model: Mapping[str, Any]
    tensors: Tensors
    if family == "llama":
        model, tensors = CONFIG, make_tensors(CONFIG)
    elif family == "gpt_oss":
        model = tiny_experts.FAMILIES[family]
        tensors = tiny_experts.make_tensors(model)
    else:
        model, tensors = tiny_dense.FAMILIES[family], reference_of(family)[1]
    capacity = check_same(margins, tmp_path, model, tensors, gpu.make_platform(interpret=True), "GPU")
    assert capacity.description == "cpu (Triton kernels)" and capacity.block_size == 16
