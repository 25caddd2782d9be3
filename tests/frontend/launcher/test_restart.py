"""Delays before a worker's next start."""

import hypothesis.strategies as st
from hypothesis import given

from frontend.launcher.restart import LONGEST, WINDOW, RestartPolicy


@given(st.lists(st.tuples(st.floats(0.0, 400.0), st.booleans()), min_size=1, max_size=40))
def test_a_start_is_always_due_within_the_longest_delay(deaths: list[tuple[float, bool]]) -> None:
    policy, now = RestartPolicy(1.0, 5), 0.0
    for seconds, was_ready in deaths:
        now += seconds
        delay = policy.died(now, was_ready=was_ready)
        assert 0.0 <= delay <= LONGEST
        assert policy.due == now + delay


def test_deaths_far_apart_start_at_once_and_starts_that_fail_do_not() -> None:
    policy = RestartPolicy(1.0, 5)
    assert [policy.died(number * 2 * WINDOW, was_ready=True) for number in range(5)] == [0.0] * 5
    assert not policy.is_crash_loop
    assert [policy.died(10 * WINDOW + number * 2 * WINDOW, was_ready=False) for number in range(4)] == [0.0, 1.0, 2.0, 4.0]
    assert policy.is_crash_loop
    assert policy.died(30 * WINDOW, was_ready=True) == 0.0
    assert not policy.is_crash_loop
