"""What is counted of requests, by hand-made times."""

import pytest

from frontend.server.measures import Histogram, Measures, Timeline

_SECOND = 1_000_000_000


def test_a_value_on_a_bound_is_below_it_and_the_largest_have_a_bucket_of_their_own() -> None:
    histogram = Histogram("x", "", (1.0, 2.0))
    for value, count in ((0.0, 1), (1.0, 1), (1.5, 3), (2.0, 1), (2.1, 1), (1e9, 1)):
        histogram.observe(value, count)
    assert histogram.counts == [2, 4, 2]
    assert histogram.sum == pytest.approx(1.0 + 4.5 + 2.0 + 2.1 + 1e9)


def test_the_times_of_a_stream_add_up() -> None:
    measures = Measures()
    timeline = Timeline(num_prompt_tokens=7, max_tokens=5, submitted_ns=10 * _SECOND, queue_ns=2 * _SECOND)
    measures.first_came(timeline, 15 * _SECOND)
    measures.others_came({15 * _SECOND: 1}, 16 * _SECOND)
    measures.others_came({16 * _SECOND: 1, 12 * _SECOND: 3}, 18 * _SECOND)  # three of other requests
    timeline.last_ns, timeline.num_tokens = 18 * _SECOND, 3
    measures.request_ended(timeline, "stop", 19 * _SECOND)
    assert measures.ended == {"stop": 1}
    sums = {histogram.name: (sum(histogram.counts), histogram.sum) for histogram in measures.histograms}
    assert sums == {
        "time_to_first_token_seconds": (1, 5.0),
        "inter_token_latency_seconds": (5, 1.0 + 2.0 + 18.0),
        "request_time_per_output_token_seconds": (1, 1.5),
        "e2e_request_latency_seconds": (1, 9.0),
        "request_queue_time_seconds": (1, 2.0),
        "request_inference_time_seconds": (1, 6.0),
        "request_prefill_time_seconds": (1, 3.0),
        "request_decode_time_seconds": (1, 3.0),
        "request_prompt_tokens": (1, 7.0),
        "request_generation_tokens": (1, 3.0),
        "request_max_num_generation_tokens": (1, 3.0),
        "request_params_max_tokens": (1, 5.0),
        "request_prefill_kv_computed_tokens": (1, 7.0),
        "request_params_n": (0, 0.0),
    }


def test_tokens_that_come_with_the_end_count_as_their_mean() -> None:
    measures = Measures()
    timeline = Timeline(num_prompt_tokens=1, max_tokens=5, submitted_ns=0, queue_ns=_SECOND, num_tokens=5)
    measures.all_came(timeline, 2 * _SECOND, 11 * _SECOND)
    measures.request_ended(timeline, "length", 11 * _SECOND)
    assert sum(measures.between_tokens.counts) == 4
    assert measures.between_tokens.sum == pytest.approx(8.0)
    assert measures.first_token.sum == measures.queue.sum + measures.prefill.sum == 3.0
    assert measures.decode.sum == 8.0


def test_what_never_began_has_no_times() -> None:
    measures = Measures()
    measures.request_ended(Timeline(num_prompt_tokens=1, max_tokens=5, submitted_ns=0), "abort", _SECOND)
    assert sum(measures.whole.counts) == 1
    assert not any(
        sum(histogram.counts) for histogram in (measures.first_token, measures.queue, measures.decode, measures.per_token)
    )
