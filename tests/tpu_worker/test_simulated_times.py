"""How long the simulated device takes with a report: what the worker would run on the chip, added up."""

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from protocol.aot_report import AotReport, StepTime
from protocol.codec import Int32Array
from protocol.config import EngineConfig, SimulatedTimes
from protocol.errors import CapacityError, ConfigError
from protocol.params import EngineParams
from tests.model_writer import write_huggingface
from tests.roofline_report import LLAMA_1B, roofline_report
from tests.tpu_worker.tiny_engine import tiny_config
from tests.tpu_worker.tiny_models import CONFIG, make_tensors, write_model
from tpu_worker.blueprint import draw_blueprint
from tpu_worker.buckets import by_cost, first_to_hold, make_buckets
from tpu_worker.device import Admission, Extension, PooledRow, ScoredRow, StepPlan
from tpu_worker.mesh.devices import open_devices
from tpu_worker.mesh.layout import make_layout
from tpu_worker.models.registry import model_from_config
from tpu_worker.needs import DRAWS
from tpu_worker.simulated_times import ReportedTimes, required_programs, simulated_chip
from tpu_worker.simulator import SimulatedDevice
from tpu_worker.weights.load import WeightLoader, open_source

_NONE = np.empty(0, np.int32)
SEQS, TOKENS = 64, 128
BUCKETS = make_buckets(SEQS, TOKENS)


def numbered() -> AotReport:
    """A report in which each program's time tells which it is, and what it was asked with."""
    report = roofline_report(max_num_seqs=SEQS, max_num_batched_tokens=TOKENS)
    programs = tuple(
        replace(program, time=StepTime(fixed=1000.0 * (index + 1), per_row=0.5, per_context_token=0.25, per_pair=0.125))
        for index, program in enumerate(report.programs)
    )
    return replace(report, programs=programs)


REPORT = numbered()
FIXED = {program.name: program.time.fixed for program in REPORT.programs if program.time}
TIMES = ReportedTimes(REPORT, "r.json", LLAMA_1B, SEQS, TOKENS)


def ints(*values: int) -> Int32Array:
    return np.array(values, np.int32)


def plan(decodes: list[int], prompts: list[tuple[int, int]], **fields: Any) -> StepPlan:
    """Decoding rows at these positions, and chunks of prompts: (start, tokens)."""
    rows = [*((start, 1) for start in decodes), *prompts]
    starts, counts = ints(*(row[0] for row in rows)), ints(*(row[1] for row in rows))
    slots, samples = np.arange(len(rows), dtype=np.int32), np.ones(len(rows), bool)
    return StepPlan(0, fields.pop("admissions", ()), _NONE, _NONE, _NONE, slots, starts, counts, samples, len(decodes), **fields)


def test_a_step_that_decodes() -> None:
    """Each row sees what is before it and itself."""
    assert TIMES.step_us(plan([9, 19, 0], [])) == FIXED["step 4x4"] + 3 * 0.5 + (10 + 20 + 1) * 0.25


def test_a_step_with_prompts_runs_where_the_worker_would_run_it() -> None:
    found = TIMES.step_us(plan([9], [(0, 3), (5, 2)]))
    assert found == FIXED["step 32x4"] + 0.5 + 10 * 0.25 + ((1 + 2 + 3) + (6 + 7)) * 0.125
    together = replace(REPORT, decodes_apart=False)
    found = ReportedTimes(together, "r.json", LLAMA_1B, SEQS, TOKENS).step_us(plan([9], [(0, 3), (5, 2)]))
    assert found == FIXED["step 16x16"] + 0.5 + 10 * 0.25 + 19 * 0.125  # where decoding steps do not stay apart


def test_sampling_is_paid_by_steps_that_want_it() -> None:
    plain = TIMES.step_us(plan([9, 9, 9, 9, 9], []))
    assert TIMES.step_us(plan([9, 9, 9, 9, 9], [], needs=DRAWS)) == plain + FIXED["sampler 16"] + 5 * 0.5
    masked = plan([9, 9, 9, 9, 9], [], masked_rows=ints(1, 3))
    assert TIMES.step_us(masked) == plain
    assert TIMES.masked_us(masked) == FIXED["pick 16"] + 2 * 0.5
    drawn = plan([9, 9, 9, 9, 9], [], masked_rows=ints(1, 3), masked_needs=DRAWS)
    assert TIMES.masked_us(drawn) == FIXED["mask 16"] + 2 * 0.5 + FIXED["sampler 16"] + 5 * 0.5


def test_prompts_that_are_scored_or_pooled_have_a_program_of_their_own() -> None:
    for fields in ({"scored": (ScoredRow(0, 1, 2, 0),)}, {"pooled": (PooledRow(0, "last"),)}):
        assert TIMES.step_us(plan([], [(0, 3)], **fields)) == FIXED["scorer 128x64"] + 6 * 0.125


def test_what_comes_before_a_step_is_paid_too() -> None:
    ruled = EngineParams(4, logit_bias={1: 1.0})
    admissions = tuple(Admission(slot, ints(1), (ints(0),), 1, params) for slot, params in enumerate((EngineParams(4), ruled)))
    extensions = tuple(Extension(slot, 0, np.zeros(40, np.int32)) for slot in range(2))
    blocks = dict.fromkeys(("block_slots", "block_indices", "block_ids"), np.zeros(65, np.int32))
    full = plan([9], [(0, 1)], admissions=admissions, extensions=extensions)
    full = StepPlan(**{name: getattr(full, name) for name in full.__slots__} | blocks)
    bare = TIMES.step_us(plan([9], [(0, 1)]))
    assert TIMES.step_us(full) == bare + 2 * FIXED["admit"] + FIXED["rules"] + 2 * FIXED["extend"] + 2 * FIXED["grow"]


@given(
    st.lists(st.integers(0, 8000), max_size=SEQS),
    st.lists(st.tuples(st.integers(0, 8000), st.integers(1, 20)), max_size=3),
    st.booleans(),
)
def test_any_step_by_a_loop(decodes: list[int], prompts: list[tuple[int, int]], drawn: bool) -> None:
    step = plan(decodes, prompts, needs=DRAWS if drawn else 0)
    if not 1 <= step.num_tokens <= TOKENS or len(step.slots) > SEQS:
        return
    bucket = first_to_hold(step.num_tokens, len(step.slots), by_cost(BUCKETS, LLAMA_1B.head_cost), decodes_apart=True)
    expected = FIXED[f"step {bucket.tokens}x{bucket.rows}"]
    for start in decodes:
        expected += 0.5 + 0.25 * sum(1 for _ in range(start + 1))
    for start, count in prompts:
        expected += 0.125 * sum(position + 1 for position in range(start, start + count))
    if drawn:
        expected += FIXED[f"sampler {bucket.rows}"] + 0.5 * len(step.slots)
    assert math.isclose(TIMES.step_us(step), expected, rel_tol=1e-12)


def test_the_programs_are_those_that_a_worker_compiles(tmp_path: Path) -> None:
    config = tiny_config(write_model(tmp_path, CONFIG, make_tensors(CONFIG)))
    source = open_source(config)
    blueprint = draw_blueprint(config, source, make_layout(open_devices(config)), "cpu")
    loader = WeightLoader(source, blueprint.platform.products, blueprint.layout, blueprint.max_model_len, lambda *_: None)
    compiler = blueprint.compiler(loader.shapes(loader.load_first()), 10)
    assert sorted(compiler.programs(blueprint.buckets)) == sorted(required_programs(blueprint.buckets))


def test_rows_cost_about_what_the_worker_takes_them_to_cost(tmp_path: Path) -> None:
    """It counts all parameters of layers, norms too."""
    sizes = {"num_hidden_layers": 16, "hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64}
    write_huggingface(tmp_path, **sizes, intermediate_size=8192, vocab_size=128256, rms_norm_eps=1e-5)
    outside, *layers = model_from_config(tmp_path / "config.json").parameters()
    counted = sum(math.prod(one.shape) for layer in layers for one in layer.values())
    assert LLAMA_1B.head_cost == pytest.approx(math.prod(outside["embedding"].shape) / counted, rel=1e-3)


def without(name: str) -> AotReport:
    return replace(REPORT, programs=tuple(program for program in REPORT.programs if program.name != name))


def with_program(name: str, **changes: Any) -> AotReport:
    programs = (replace(program, **changes) if program.name == name else program for program in REPORT.programs)
    return replace(REPORT, programs=tuple(programs))


@pytest.mark.parametrize(
    ("report", "message"),
    [
        (without("step 16x16"), "--sim-report r.json: nothing is said of step 16x16: it is for --max-num-seqs 64 and "),
        (with_program("sampler 4", time=None), "--sim-report r.json: no time is known of sampler 4: make it again with"),
        (with_program("sampler 4", time=None, unknown="it has none"), "no time is known of sampler 4: it has none"),
        (
            with_program("mask 4", error="no registers"),
            "mask 4 did not compile for TPU v6 lite, .*: no registers",
        ),
        (
            replace(REPORT, model_digest="else"),
            r"r.json is of llama-3.2-1b \(else\), and --model is of another one \(16 lay",
        ),
    ],
)
def test_a_report_of_something_else_is_refused(report: AotReport, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReportedTimes(report, "r.json", LLAMA_1B, SEQS, TOKENS)


def test_an_engine_of_other_buckets_is_told_whose_the_report_is() -> None:
    with pytest.raises(ConfigError, match="is for --max-num-seqs 64 and --max-num-batched-tokens 128, this engine has 256 and 512"):
        ReportedTimes(REPORT, "r.json", LLAMA_1B, 256, 512)
    with pytest.raises(ConfigError, match="nothing is said of scorer 128x16: "):
        ReportedTimes(REPORT, "r.json", LLAMA_1B, 16, 128)


def test_a_program_without_a_time_that_hardly_takes_any() -> None:
    times = ReportedTimes(with_program("admit", time=None), "r.json", LLAMA_1B, SEQS, TOKENS)
    admission = Admission(0, ints(1), (ints(0),), 1, EngineParams(4))
    assert times.step_us(plan([], [(0, 1)], admissions=(admission,))) == times.step_us(plan([], [(0, 1)]))


def config(path: Path, **fields: Any) -> EngineConfig:
    sizes = {"max_num_seqs": SEQS, "max_num_batched_tokens": TOKENS}
    simulated = SimulatedTimes(report=str(path))
    return EngineConfig(
        model_path="", model_format="gguf", served_model_names=("m",), device="sim", simulated=simulated, **sizes | fields
    )


def test_a_device_is_as_large_as_its_chip(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(msgspec.json.encode(replace(REPORT, num_blocks=100)))
    for fields, expected in (
        ({}, (100, 64)),
        ({"block_size": 16}, (400, 16)),
        ({"kv_cache_memory": 7 * 64 * 32768 + 5}, (7, 64)),
    ):
        own = config(path, **fields)
        device = SimulatedDevice(own, vocab_size=9, max_model_len=300, chip=simulated_chip(own, LLAMA_1B))
        capacity = device.load(lambda *_: None)
        assert ((capacity.num_blocks, capacity.block_size), capacity.description) == (expected, "sim of v6e:1x1")
    with pytest.raises(CapacityError, match="sim of v6e:1x1 holds 100 simulated blocks, a sequence of 6401 tokens needs 101"):
        SimulatedDevice(config(path), vocab_size=9, max_model_len=6401, chip=simulated_chip(config(path), LLAMA_1B))


def test_masked_rows_are_sampled_on_the_device_behind_their_step(tmp_path: Path) -> None:
    """A step that waits for masks is as long as its parts; the next one begins behind both."""
    path = tmp_path / "r.json"
    path.write_bytes(msgspec.json.encode(REPORT))
    device = SimulatedDevice(config(path), vocab_size=64, max_model_len=300, chip=simulated_chip(config(path), LLAMA_1B))
    masked = plan([], [(0, 2)], masked_rows=ints(0), admissions=(Admission(0, ints(1, 2), (ints(0),), 2, EngineParams(4)),))
    first = device.forward(masked)
    second = device.sample(first, np.full((1, 2), 0xFFFFFFFF, np.uint32))
    third = device.forward(plan([2], []))
    parts = TIMES.step_us(masked) + TIMES.masked_us(masked)
    assert second.finished_ns - second.started_ns == pytest.approx(parts * 1e3, abs=2)
    assert second.finished_ns - first.finished_ns >= int(TIMES.masked_us(masked) * 1e3)
    assert third.started_ns >= second.finished_ns
