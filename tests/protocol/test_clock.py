"""The clock for limits: true while its loop runs, and standing still while it does not."""

import hypothesis.strategies as st
from hypothesis import given

from protocol.clock import ChargedClock

TICK = 1_000


@given(st.lists(st.integers(0, TICK), max_size=30))
def test_a_loop_that_comes_round_every_tick_sees_the_true_time(steps: list[int]) -> None:
    clock, now_ns = ChargedClock(TICK, now_ns=7), 7
    for step in steps:
        now_ns += step
        assert clock.advance(now_ns) == clock.now_ns == now_ns


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=30))
def test_no_pass_charges_more_than_two_ticks(steps: list[int]) -> None:
    clock, now_ns = ChargedClock(TICK, now_ns=0), 0
    for step in steps:
        now_ns, before = now_ns + step, clock.now_ns
        assert clock.advance(now_ns) - before == min(step, 2 * TICK)


def test_seconds_are_those_of_the_pass() -> None:
    clock = ChargedClock(10**9, now_ns=0)
    clock.advance(1_500_000_000)
    assert clock.now == 1.5
