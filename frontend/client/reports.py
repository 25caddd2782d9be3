"""What the engine reports about itself, as users read it."""

import numpy as np

from frontend.client.steps import Steps, from_records
from frontend.wire import TraceReport


def steps_of(report: TraceReport) -> Steps:
    """The recorded steps, with a column for when the frontend had the tokens of each: `delivered_ns`, 0 where it was sent none."""
    steps = from_records(report.records)
    answered = np.frombuffer(report.answered_i64, "<i8").reshape(-1, 3)
    when = {(worker, step_id): received_ns for worker, step_id, received_ns in answered.tolist()}
    pairs = zip(steps["worker"].tolist(), steps["step_id"].tolist(), strict=True)
    return Steps(steps.columns | {"delivered_ns": np.array([when.get(pair, 0) for pair in pairs], np.int64)})
