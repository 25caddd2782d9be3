"""What steps come to."""

import numpy as np

from protocol.messages import STEP_STAGES, ModelRunnerOutput
from scheduler_proc.in_flight import InFlightStep
from scheduler_proc.stats import StepSums

NOTHING = np.empty(0, np.int32)


def _step(scheduled_ns: int, sent_ns: int) -> InFlightStep:
    return InFlightStep(0, NOTHING, NOTHING.astype(np.int64), NOTHING, NOTHING.astype(bool), 0, [], scheduled_ns, sent_ns)


def test_no_stage_ever_takes_less_than_nothing() -> None:
    """A sender that is interrupted behind the send looks at the clock when the worker has the step: counters may not fall."""
    sums = StepSums()
    sums.count(4, _step(100, 110), ModelRunnerOutput(0, 0, b"", times_ns=(120, 130, 150, 160, 200, 205)), 220)
    assert dict(zip(STEP_STAGES, sums.stages_ns, strict=True)) == {
        "schedule": 10,
        "send": 10,
        "prepare": 10,
        "dispatch": 20,
        "collect": 5,
        "answer": 15,
    }
    before = list(sums.stages_ns)
    sums.count(4, _step(100, 900), ModelRunnerOutput(0, 1, b"", times_ns=(120, 130, 150, 160, 205, 203)), 220)
    assert all(later >= sooner for later, sooner in zip(sums.stages_ns, before, strict=True))
    assert sums.stages_ns[0] == before[0] + 20 and sums.stages_ns[1] == before[1]
