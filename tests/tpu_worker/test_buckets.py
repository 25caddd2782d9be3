"""Every step finds a shape, and a cheap one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpu_worker.buckets import Bucket, by_cost, first_to_hold, make_buckets


@given(st.integers(1, 600), st.integers(1, 4096), st.booleans(), st.data())
def test_the_first_two_hold_any_step(
    max_num_seqs: int, max_num_batched_tokens: int, padding_costs: bool, data: st.DataObject
) -> None:
    buckets = make_buckets(max_num_seqs, max_num_batched_tokens, padding_costs=padding_costs)
    rows = data.draw(st.integers(1, max_num_seqs))
    tokens = data.draw(st.integers(rows, max(rows, max_num_batched_tokens)))
    for ready in (buckets[:2], buckets):
        chosen = first_to_hold(tokens, rows, by_cost(ready, 0.3))
        assert chosen.tokens >= tokens and chosen.rows >= rows
        cost = chosen.tokens + 0.3 * chosen.rows
        assert all(b.tokens + 0.3 * b.rows >= cost for b in ready if b.tokens >= tokens and b.rows >= rows)
    assert len(set(buckets)) == len(buckets) and all(bucket.tokens >= bucket.rows for bucket in buckets)


def test_buckets_of_the_defaults() -> None:
    buckets = make_buckets(256, 512)
    assert buckets[:2] == (Bucket(4, 4), Bucket(512, 256))
    assert {Bucket(16, 16), Bucket(64, 64), Bucket(256, 256), Bucket(512, 4), Bucket(128, 16)} <= set(buckets)


def test_buckets_of_the_defaults_where_padding_costs() -> None:
    decode = [Bucket(size, size) for size in (16, 64, 128, 256)]
    prompts = [Bucket(size, 64) for size in (512, 256, 128)]
    assert make_buckets(256, 512, padding_costs=True) == (decode[0], Bucket(512, 256), *decode[1:], *prompts)


@given(st.integers(1, 4096), st.integers(1, 16384))
def test_padding_has_a_bound_where_it_costs(max_num_seqs: int, max_num_batched_tokens: int) -> None:
    """Of rows that decode, from 64 on, and of tokens of a step with prompts, from 128 on: at most as many again."""
    buckets = by_cost(make_buckets(max_num_seqs, max_num_batched_tokens, padding_costs=True), 0.3)
    for rows in range(1, max_num_seqs + 1, 7):
        assert first_to_hold(rows, rows, buckets).rows <= max(64, 2 * rows + 4)
    most = max(max_num_seqs, max_num_batched_tokens)
    for tokens in range(2, most + 1, 37):
        assert first_to_hold(tokens, 1, buckets, decodes_apart=True).tokens <= max(256, 2 * tokens + 4)


def test_decode_takes_the_decode_bucket() -> None:
    buckets = by_cost(make_buckets(64, 512), 0.3)
    assert first_to_hold(3, 3, buckets) == Bucket(4, 4)
    assert first_to_hold(17, 17, buckets) == Bucket(64, 64)
    assert first_to_hold(100, 2, buckets) == Bucket(128, 4)


def test_decode_buckets_are_left_to_decoding_where_that_matters() -> None:
    buckets = by_cost(make_buckets(64, 512), 0.3)
    assert first_to_hold(30, 2, buckets) == Bucket(64, 64)
    assert first_to_hold(30, 2, buckets, decodes_apart=True) == Bucket(128, 4)
    assert first_to_hold(30, 30, buckets, decodes_apart=True) == Bucket(64, 64)
    only = make_buckets(64, 64)  # no step is larger than the batch
    assert first_to_hold(60, 50, only, decodes_apart=True) == Bucket(64, 64)


def test_a_step_that_none_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="no bucket holds 600 tokens of 2 rows"):
        first_to_hold(600, 2, make_buckets(64, 512))
