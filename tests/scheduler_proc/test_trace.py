"""The ring of recorded steps, and what is read of it again and again."""

import numpy as np
import pytest

from protocol.messages import ModelRunnerOutput
from scheduler_proc.in_flight import InFlightStep
from scheduler_proc.trace import COLUMNS, TraceRing


def ring(steps: int, *, capacity: int = 8) -> TraceRing:
    made = TraceRing(capacity)
    empty = np.zeros(0, np.int32)
    for step_id in range(steps):
        step = InFlightStep(step_id, empty, np.zeros(0, np.int64), empty, np.zeros(0, bool), 0, [], scheduled_ns=1)
        made.record(3, step, ModelRunnerOutput(0, step_id, b"", times_ns=(1, 2, 3, 4, 5, 6)), 7)
    return made


@pytest.mark.parametrize(
    ("steps", "since", "most", "wanted"),
    [
        (0, 0, -1, []),
        (3, 0, -1, [0, 1, 2]),
        (3, 2, -1, [2]),
        (3, 3, -1, []),
        (3, 0, 0, []),
        (3, 0, 2, [1, 2]),
        (3, 9, -1, [0, 1, 2]),  # of a ring that has ended
        (3, -9, -1, [0, 1, 2]),
        (20, 0, -1, list(range(12, 20))),
        (20, 18, -1, [18, 19]),
        (20, 3, 5, list(range(15, 20))),
        (20, 21, 100, list(range(12, 20))),
    ],
)
def test_each_asker_gets_what_is_new(steps: int, since: int, most: int, wanted: list[int]) -> None:
    made = ring(steps)
    rows = made.rows(since, most)
    assert (made.count, rows[:, COLUMNS.index("step_id")].tolist()) == (steps, wanted)
    assert rows.shape == (len(wanted), len(COLUMNS))
    rows[:] = -1
    assert (made.rows() >= 0).all(), "a copy"
