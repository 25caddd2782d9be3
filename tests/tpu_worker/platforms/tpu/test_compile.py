"""The step of the engine, compiled for chips that are not there: nothing large is copied, and little memory is needed beside it."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from tests.ahead import ahead

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: nothing compiles for TPUs"),
    pytest.mark.timeout(900),  # a program takes ten seconds alone, and a minute where others compile too
]

LAYERS = 2
# Sizes as their config.json has them, but for the layers.
LLAMA_1B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
}
LLAMA_8B = {**LLAMA_1B, "hidden_size": 4096, "intermediate_size": 14336, "head_dim": 128, "tie_word_embeddings": False}
# Experts as in 30B A3B, a quarter of them.
QWEN3_MOE: dict[str, Any] = {
    **LLAMA_8B,
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_size": 2048,
    "num_key_value_heads": 4,
    "num_hidden_layers": 1,
    "num_experts": 32,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "vocab_size": 32000,
}
DECODE, MIXED = "64x64", "512x16"  # tokens x rows
MOST_TEMPORARIES = 64 << 20  # bytes: a copy of the tokens of all slots would take 134 MB, one of a layer's cache 268 MB
MOST_OF_A_SAMPLER = 40 << 20  # bytes: five times the logits that it takes at once, 16 rows of one chip or 64 of four
MOST_BESIDE = 256 << 20  # bytes of tokens, rotary tables, block tables: a second table of embeddings would take 525 MB


class Job(NamedTuple):
    """What is compiled, and by which of the programs beside this file."""

    topology: str
    model: dict[str, Any]
    chips: int = 1
    kernels: str = "Pallas"
    programs: tuple[str, ...] = ()


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Any], Any]]:
    """What the compiling programs write."""

    def run(job: Job | str) -> dict[str, Any]:
        if isinstance(job, str):
            arguments = ["compile_attention", job]
        else:
            config = tmp_path_factory.mktemp("model") / "config.json"
            config.write_text(json.dumps(job.model), encoding="utf-8")
            arguments = ["compile_steps", str(config), job.topology, str(job.chips), job.kernels, *job.programs]
        command = [sys.executable, "-m", f"tests.tpu_worker.platforms.tpu.{arguments[0]}", *arguments[1:]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    with ahead(request, "job", run) as result:
        yield result


def bytes_of(model: dict[str, Any], chips: int, block_size: int) -> int:
    """Weights of one of several chips and the cache of `compile_steps`, 2048 blocks; tied embeddings once."""
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")
    hidden, mlp, heads, kv_heads, dim, vocab = (int(model[name]) for name in names)
    layer = hidden * (2 * heads * dim + 2 * kv_heads * dim + 3 * mlp)
    tables = vocab * hidden * (1 if model["tie_word_embeddings"] else 2)
    cache = 2 * 2048 * block_size * kv_heads * dim
    return 2 * (LAYERS * (layer + cache) + tables) // chips


@pytest.mark.parametrize(
    "job",
    [
        Job("v5e:1x1", LLAMA_1B, programs=(DECODE, MIXED)),
        Job("v6e:1x1", LLAMA_1B, programs=(DECODE, MIXED)),
        Job("tpu7x:1x1x1", LLAMA_1B, programs=(DECODE, MIXED)),
        Job("v6e:2x2", LLAMA_8B, 4, programs=(DECODE, MIXED)),
    ],
    ids=["1B on v5e", "1B on v6e", "1B on tpu7x", "8B on four of v6e"],
)
def test_nothing_large_is_copied(job: Job, compiled: Callable[[Any], Any]) -> None:
    found = compiled(job)
    arguments = bytes_of(job.model, job.chips, found["block_size"])
    for bucket in (DECODE, MIXED):
        program = found[bucket]
        assert program["copies"] == program["copies of slots"] == program["narrowed"] == []
        assert program["temporaries"] < MOST_TEMPORARIES
        assert arguments < program["arguments"] < arguments + MOST_BESIDE
        several = LAYERS if bucket == MIXED else 0
        assert program["kernels"] == {"attend_singles": LAYERS, "write_pages": several, "attend_chunks": several}
        if job.chips == 1:
            assert program["collectives"] == {"all-reduce": 0, "all-gather": 0}
            assert program["readers of logits"] == 1
        else:  # for the embedding, and in each layer behind attention and behind the MLP; for the logits
            assert program["collectives"] == {"all-reduce": 1 + 2 * LAYERS, "all-gather": 1}


@pytest.mark.parametrize(
    "job",
    [
        Job("v6e:1x1", LLAMA_1B, 1, "Pallas:int8:int8", (MIXED,)),
        Job("v5e:1x1", LLAMA_1B, 1, "Pallas:fp8:int8", (DECODE,)),
        Job("tpu7x:1x1x1", LLAMA_1B, 1, "Pallas:int8:fp8_e4m3", (DECODE,)),
        Job("v6e:2x2", LLAMA_8B, 4, "Pallas:fp8:fp8_e4m3", (DECODE,)),
    ],
    ids=["1B on v6e", "1B on v5e", "1B on tpu7x", "8B on four of v6e"],
)
def test_eight_bits_are_never_widened_in_memory(job: Job, compiled: Callable[[Any], Any]) -> None:
    """Weights go into products, and the cache into attention, as they are: half as many bytes, and no other array of them."""
    found, (bucket,) = compiled(job), job.programs
    program, arguments = found[bucket], bytes_of(job.model, job.chips, found["block_size"]) // 2
    assert program["copies"] == []
    assert program["temporaries"] < MOST_TEMPORARIES
    assert arguments < program["arguments"] < arguments + MOST_BESIDE
    several = LAYERS if bucket == MIXED else 0
    assert program["kernels"] == {"attend_singles": LAYERS, "write_pages": several, "attend_chunks": several}
    if job.chips > 1:  # as many as of bfloat16
        assert program["collectives"] == {"all-reduce": 1 + 2 * LAYERS, "all-gather": 1}


@pytest.mark.parametrize(
    "job",
    [
        Job(topology, LLAMA_1B, chips, programs=("samplerx64", "pickx64", "maskx64"))
        for topology, chips in (("v5e:1x1", 1), ("v6e:1x1", 1), ("tpu7x:1x1x1", 1), ("v6e:2x2", 4))
    ],
    ids=["v5e", "v6e", "tpu7x", "four of v6e"],
)
def test_choices_are_made_in_float32_and_in_little_memory(job: Job, compiled: Callable[[Any], Any]) -> None:
    """XLA compares in bfloat16 where nobody asks for the largest value itself, and chooses another token."""
    found = compiled(job)
    for name in job.programs:
        program = found[name]
        assert program["narrowed"] == []
        assert program["copies of slots"] == []
        assert program["temporaries"] < MOST_OF_A_SAMPLER


@pytest.mark.parametrize(
    "job", [Job("tpu7x:1x1x1", QWEN3_MOE, 1, f"Pallas:{weights}", ("16x16",)) for weights in ("auto", "int8")], ids=["auto", "int8"]
)
def test_experts_are_neither_copied_nor_widened(job: Job, compiled: Callable[[Any], Any]) -> None:
    """By TPU 7x, which copies several matrices of bfloat16 in one array, and widens all of eight bits where it may."""
    program = compiled(job)["16x16"]
    assert program["copies"] == []
    assert program["temporaries"] < MOST_TEMPORARIES


@pytest.mark.parametrize("job", [Job("v6e:1x1", {**LLAMA_1B, "num_hidden_layers": 1}, 1, "XLA", ("4x4",))], ids=["XLA"])
def test_copies_are_found_where_there_are_some(job: Job, compiled: Callable[[Any], Any]) -> None:
    """XLA's attention wants the cache in another layout than the one that it is kept in."""
    program = compiled(job)["4x4"]
    assert any("[2,2048,64,8,64]" in copy for copy in program["copies"])
    assert program["temporaries"] > MOST_TEMPORARIES


@pytest.mark.parametrize("job", ["v5e:1x1", "v6e:1x1", "tpu7x:1x1x1"])
def test_heads_of_every_family_compile(job: str, compiled: Callable[[Any], Any]) -> None:
    found = compiled(job)
    assert len(found) >= 12
    assert all(copies == [[], []] for copies in found.values())
