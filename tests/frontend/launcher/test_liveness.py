"""Signs of life, and how long each may be missing."""

import hypothesis.strategies as st
from hypothesis import given

from frontend.launcher.liveness import Limits, Liveness

LIMITS = Limits(pulse=10.0, step=60.0, boot=600.0)


def test_a_main_loop_may_be_silent_for_longer_than_a_process_may_be_stopped() -> None:
    assert LIMITS.silence(ready=False) == 600.0
    assert LIMITS.silence(ready=True) == 60.0
    assert Limits(pulse=10.0, step=1.0, boot=600.0).silence(ready=True) == 10.0


@given(st.lists(st.tuples(st.sampled_from(["moved", "ran", "nothing"]), st.floats(0.0, 30.0)), max_size=30))
def test_each_limit_counts_from_its_own_last_sign(signs: list[tuple[str, float]]) -> None:
    now, moved, ran = 0.0, 0.0, 0.0
    liveness = Liveness(now)
    for sign, seconds in signs:
        now += seconds
        if sign == "moved":
            liveness.moved(now, "loading")
            moved = now
        elif sign == "ran":
            liveness.ran(now)
            ran = now
        assert bool(liveness.stopped(now, LIMITS)) == (now - ran > 10.0)
        assert bool(liveness.silent(now, 60.0)) == (now - moved > 60.0)
