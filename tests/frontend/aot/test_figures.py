"""Rates by hand. The stand-in's steps take 1000 µs, 2 µs a row, 0.001 µs a token of context, 0.002 µs a pair."""

import msgspec
import pytest

from frontend.aot.figures import prefill, rates, seed_load
from protocol.aot_report import StepTime
from tests.frontend.aot.reports import config_of, report_of, without_times
from tests.frontend.aot.stand_in import PER_TOKEN, program


def test_rates_of_one_row_and_of_as_many_as_there_may_be() -> None:
    one, most = rates(report_of())
    assert (one.rows, most.rows) == (1, 16)
    assert one.microseconds == pytest.approx(1000 + 2 + 0.5) and most.microseconds == pytest.approx(1000 + 32 + 8)
    assert most.tokens_per_second == pytest.approx(16e6 / 1040)
    assert most.share == pytest.approx(800 / 1040)
    # One row runs in the bucket of four, whose roofline has three caches more: 3 × 500 × 32 KiB at 1640 GB/s.
    assert one.roofline == pytest.approx(800 - 3 * 500 * PER_TOKEN / 1640e9 * 1e6)


def test_rows_run_in_the_smallest_bucket_that_holds_them() -> None:
    slow = program("step 16x16", time=StepTime(fixed=9000), roofline=4500.0)
    one, most = rates(report_of(slow, config=config_of(max_num_seqs=5)))
    assert (most.rows, most.microseconds) == (5, 9000)
    assert one.microseconds == pytest.approx(1002.5)


def test_the_largest_prefill_beside_the_matrix_units() -> None:
    found = prefill(report_of())
    pairs = 512 * 513 // 2
    assert found is not None and found.tokens == 512
    assert found.microseconds == pytest.approx(1000 + 0.002 * pairs)
    weights = 16 * (2048 * 64 * 2 * (32 + 8) + 3 * 2048 * 8192)
    operations = 2 * (512 * weights + 2048 * 128256) + 4 * 2048 * 16 * pairs
    assert found.share is not None and found.share == pytest.approx(operations / 918e12 * 1e6 / found.microseconds)
    on_four = prefill(report_of(topology="v6e:2x2", config=config_of(tensor_parallel_size=4)))
    assert on_four is not None and on_four.share is not None and on_four.share == pytest.approx(found.share / 4)


def test_experts_and_other_models_have_no_share() -> None:
    experts = "4 layers of width 64, 8 heads, 2 KV heads of 16, 6 experts, MLP 24, vocabulary 300"
    for digest in (experts, "something else"):
        found = prefill(msgspec.structs.replace(report_of(), model_digest=digest))
        assert found is not None and found.share is None


def test_the_seeds_load_by_hand() -> None:
    plain = 1000 + 3 * 2 + 3 * 290 * 0.001
    first = 1000 + 2 * 2 + 2 * 290 * 0.001 + 0.002 * (230 * 231 // 2)
    assert seed_load(report_of()) == pytest.approx(3 / (3 * first + 117 * plain) * 1e6)


def test_the_seeds_load_in_steps_that_are_smaller_than_its_prompts() -> None:
    report = report_of(config=config_of(max_num_batched_tokens=130))
    plain = 1000 + 3 * 2 + 3 * 290 * 0.001
    chunks = (128 * 129 // 2, 102 * 128 + 102 * 103 // 2)
    first = sum(1000 + 2 * 2 + 2 * 290 * 0.001 + 0.002 * pairs for pairs in chunks)
    assert seed_load(report) == pytest.approx(3 / (3 * first + 117 * plain) * 1e6)


def test_nothing_is_said_where_no_time_is_known() -> None:
    report = without_times(report_of())
    assert rates(report) == [] and prefill(report) is None and seed_load(report) is None
    assert seed_load(report_of(config=config_of(max_num_seqs=2))) is None
    assert seed_load(report_of(config=config_of(max_num_batched_tokens=2))) is None
    assert prefill(report_of(config=config_of(max_num_batched_tokens=1024))) is None
