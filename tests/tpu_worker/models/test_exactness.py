"""What a layer of each kind adds (biases, norms of heads, windows) leaves a row's bits alone, whatever runs beside it."""

from collections.abc import Iterator

import pytest

from protocol.params import EngineParams
from tests.tpu_worker.compiler import needs_compiler
from tests.tpu_worker.device_driver import Driver
from tests.tpu_worker.tiny_engine import BLOCK_SIZE, tiny_config
from tests.tpu_worker.tiny_models import FAMILIES, make_tensors, write_model
from tpu_worker.device import Capacity
from tpu_worker.runner import JaxDevice

PROMPTS = [list(range(1, 24)), [5, 6], list(range(90, 30, -1)), [7] * 16, [3, 1, 4, 1, 5, 9, 2, 6, 5]]


@pytest.fixture(
    scope="module",
    params=[
        ("llama", "float32"),
        ("qwen2 with windows", "bfloat16"),
        pytest.param(("qwen3", "bfloat16"), marks=pytest.mark.every_processor),
    ],
    ids=" ".join,
)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[JaxDevice, Capacity]]:
    name, dtype = request.param
    # With AMX it is XLA that multiplies, whose rows are stable over a multiple of 32 inputs (`platforms/cpu/stability.py`).
    family = {**FAMILIES[name], "intermediate_size": 96}
    path = write_model(tmp_path_factory.mktemp("tiny"), family, make_tensors(family))
    device = JaxDevice(tiny_config(path, dtype=dtype))
    capacity = device.load(lambda *_: None)
    yield device, capacity
    device.close()


@needs_compiler
def test_bits_do_not_depend_on_depth_batch_or_chunks(loaded: tuple[JaxDevice, Capacity]) -> None:
    device, capacity = loaded
    params = EngineParams(20, logprobs=0)

    def run(prompts: list[list[int]], depth: int, chunk: int) -> list[tuple[list[int], list[float]]]:
        requests = Driver(device, capacity.num_blocks, BLOCK_SIZE, depth, num_groups=len(capacity.windows)).run(
            prompts, params, chunk
        )
        return [(request.tokens, request.logprobs) for request in requests]

    alone = [run([prompt], 1, 1000)[0] for prompt in PROMPTS]
    for depth, chunk in ((1, 1000), (2, 16), (4, 7)):
        assert run(PROMPTS, depth, chunk) == alone
