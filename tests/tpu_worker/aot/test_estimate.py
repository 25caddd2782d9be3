"""Times that can be worked out by hand."""

import dataclasses

import pytest

from protocol.aot_report import StepTime
from protocol.chips import CHIPS
from tpu_worker.aot.estimate import cycles_by_part, roofline, step_parts
from tpu_worker.aot.kernel_time import Geometry, attention_time, chunks_time, singles_time, writes_time
from tpu_worker.aot.program_text import Cost
from tpu_worker.aot.schedule import Loop

# One that makes the arithmetic short: a cycle is a microsecond, a byte a nanosecond.
CHIP = dataclasses.replace(CHIPS["v6e"], clock=1e6, bandwidth=1e9, bfloat16_rate=1e9, link_bandwidth=1e9, link_latency=1e-6)
LAYER = Geometry(page=64, run=8, page_bytes=2000, window=0, chunk=128, chunk_run=4, heads_at_once=2, num_kv_heads=4)
# Loops as the kernels have them: of work items, of runs of pages, of pages on their way, waited for, cleared, of heads.
SINGLES = Loop(1, [Loop(10, [Loop(3), Loop(100, [Loop(3), Loop(3), Loop(1), Loop(5)])])])
CHUNKS = Loop(1, [Loop(20, [Loop(3), Loop(50, [Loop(3), Loop(3), Loop(1), Loop(5), Loop(200)]), Loop(9)])])
WRITES = Loop(1, [Loop(30, [Loop(7)])])


def at(time: StepTime, rows: int, context: int) -> float:
    """Microseconds of rows that see so many tokens each."""
    return time.fixed + rows * (time.per_row + context * time.per_context_token)


@pytest.mark.parametrize("context", [1, 64, 500, 512, 513, 5000])
def test_a_decoding_row_is_exact_at_its_context(context: int) -> None:
    runs, pages = -(-context // 512), -(-context // 64)
    computed = 10 + 100 * runs + (3 + 1) * pages
    moved = 2 * pages
    found = singles_time(SINGLES, LAYER, CHIP, context)
    assert at(found, 1, context) == pytest.approx(max(computed, moved), rel=0.2 if context < 512 else 1e-9)
    assert at(found, 3, context) == pytest.approx(3 * at(found, 1, context))
    slow = dataclasses.replace(CHIP, bandwidth=1e6)
    assert at(singles_time(SINGLES, LAYER, slow, 5000), 1, 5000) == pytest.approx(2000 * 79)


def test_a_window_bounds_what_a_row_costs() -> None:
    windowed = dataclasses.replace(LAYER, window=512)
    found = singles_time(SINGLES, windowed, CHIP, 5000)
    assert found.per_context_token == 0 and found.per_row == at(singles_time(SINGLES, LAYER, CHIP, 512), 1, 512)


def test_prompts_pay_for_pairs_and_pages() -> None:
    found = chunks_time(CHUNKS, LAYER, CHIP, 512)
    of_run, of_item = 50 + 2 * 200 + 4 * (3 + 1), 20 + 4 * 9
    assert found.per_pair * 128 * 256 == pytest.approx(of_run)
    runs = 1 + 1 + 2 + 2  # of 256 positions that a block of 128 tokens sees
    assert found.fixed + found.per_pair * 512 * 512 / 2 == pytest.approx(4 * of_item + runs * of_run)
    all_tokens = chunks_time(CHUNKS, dataclasses.replace(LAYER, chunk=512), CHIP, 512)
    assert all_tokens.fixed + all_tokens.per_pair * 512 * 512 / 2 == pytest.approx(of_item + 2 * of_run)
    slow = dataclasses.replace(CHIP, bandwidth=1e6)
    assert chunks_time(CHUNKS, LAYER, slow, 512).per_pair * 128 * 256 == pytest.approx(4 * 2000)
    assert writes_time(WRITES, LAYER, CHIP, 512).fixed == pytest.approx(10 * (30 + 7))


def test_what_runs_once_is_no_loop() -> None:
    """Of one head of keys none are left but those of pages."""
    alone = dataclasses.replace(LAYER, heads_at_once=1, num_kv_heads=1)
    loop = Loop(1, [Loop(20, [Loop(3), Loop(250, [Loop(3), Loop(3), Loop(1), Loop(5)])])])
    of_run, of_item = 250 + 4 * (3 + 1), 20
    found = chunks_time(loop, alone, CHIP, 512)
    assert found.fixed + found.per_pair * 512 * 512 / 2 == pytest.approx(4 * of_item + 6 * of_run)


@pytest.mark.parametrize(
    "loop", [Loop(1), Loop(1, [Loop(10, [Loop(3)])]), Loop(1, [Loop(10, [Loop(3), Loop(9, [Loop(8), Loop(1)])])])]
)
def test_a_schedule_of_another_form_is_refused(loop: Loop) -> None:
    """As of a cache so small that the compiler keeps it in vector memory."""
    with pytest.raises(ValueError, match="other loops than its source"):
        singles_time(loop, LAYER, CHIP, 500)
    with pytest.raises(ValueError, match="other loops than its source"):
        chunks_time(loop, LAYER, CHIP, 512)


def test_layers_add_up() -> None:
    loops = {"attend_singles": SINGLES}
    one = attention_time(loops, {LAYER: 1}, CHIP, 4, 4, 600)
    several = attention_time(loops, {LAYER: 3}, CHIP, 4, 4, 600)
    assert at(several, 4, 600) == pytest.approx(3 * at(one, 4, 600))


def test_parts_are_what_the_scopes_say() -> None:
    costs = [
        Cost("a", "fusion", 1, "jit(step)/jit(_attend)/dot_general"),
        Cost("b", "fusion", 20, "jit(step)/jit(_attend)/concatenate"),
        Cost("c", "fusion", 300, "jit(step)/jit(_mix)/rsqrt"),
        Cost("d", "fusion", 4000, "jit(step)/dot_general"),
        Cost("e", "fusion", 50_000, "jit(step)/reduce"),
        Cost("f", "all-reduce", 600_000, "jit(step)/jit(_mix)/psum"),
        Cost("g", "fusion", 7_000_000, "jit(step)/gather"),
    ]
    assert cycles_by_part(costs) == {
        "products": 301,
        "attention": 20,
        "head": 4000,
        "sampler": 50_000,
        "collectives": 600_000,
        "other": 7_000_000,
    }


def test_nothing_is_faster_than_its_weights_come() -> None:
    attention = StepTime(fixed=5.0, per_row=2.0, per_context_token=0.5, per_pair=0.25)
    time, parts = step_parts({"products": 10, "head": 900}, CHIP, {"products": 40_000, "head": 1000}, attention, 0, 0, 1)
    assert parts == {"products": 40.0, "head": 900.0, "attention": 5.0}
    assert time == StepTime(fixed=945.0, per_row=2.0, per_context_token=0.5, per_pair=0.25)
    assert roofline(40_000, 2000, 1000.0, CHIP) == pytest.approx(42.0)
    assert roofline(40_000, 2000, 90_000.0, CHIP) == pytest.approx(90.0)


def test_what_chips_tell_each_other_takes_links_and_their_latency() -> None:
    attention = StepTime(fixed=0.0)
    _, parts = step_parts({}, CHIP, {}, attention, 4000, 5, 4)
    assert parts["collectives"] == pytest.approx(2 * 3 / 4 * 4 + 5 * 3)  # a byte takes a nanosecond, a hop a microsecond
