"""Writes recorded steps in Chrome's trace format, which Perfetto and chrome://tracing show: a lane per process, one per device."""

import msgspec

from frontend.client.steps import Steps

_FRONTEND, _SCHEDULER, _FIRST_WORKER, _FIRST_DEVICE = 1, 2, 100, 1000  # process ids of the trace: its lanes, from top to bottom


def chrome_trace(steps: Steps) -> bytes:
    """JSON of the trace. Times become microseconds after the first event, each event names its step."""
    events: list[dict[str, object]] = [_name(_FRONTEND, "frontend"), _name(_SCHEDULER, "scheduler_proc")]
    for worker in steps.workers:
        events += [_name(_FIRST_WORKER + worker, f"tpu_worker {worker}"), _name(_FIRST_DEVICE + worker, f"device {worker}")]
    origin = int(steps["scheduled_ns"].min()) if len(steps) else 0
    for index in range(len(steps)):
        row = {name: int(column[index]) for name, column in steps.columns.items()}
        worker, step = row["worker"], row["step_id"]
        arguments = {"step": step, "decodes": row["num_decodes"], "prefill_tokens": row["num_prefill_tokens"]}
        for pid, what, begin, end in (
            (_SCHEDULER, "schedule", "scheduled_ns", "sent_ns"),
            (_FIRST_WORKER + worker, "prepare", "received_ns", "prepared_ns"),
            (_FIRST_WORKER + worker, "dispatch", "prepared_ns", "dispatched_ns"),
            (_FIRST_DEVICE + worker, "run", "started_ns", "finished_ns"),
            (_FIRST_WORKER + worker, "collect", "finished_ns", "collected_ns"),
            (_SCHEDULER, "answer", "collected_ns", "answered_ns"),
            (_FRONTEND, "deliver", "answered_ns", "delivered_ns"),
        ):
            if row.get(end, 0) == 0:  # a step that brought nobody a token is not delivered
                continue
            # Collection and answers overlap the stages of the next step, so they get rows of their own.
            thread = 2 if what in ("collect", "answer") else 1
            begin_us, end_us = (row[begin] - origin) / 1e3, (row[end] - origin) / 1e3
            events.append(
                {
                    "name": f"{what} {step}",
                    "cat": what,
                    "ph": "X",
                    "pid": pid,
                    "tid": thread,
                    "ts": begin_us,
                    "dur": max(end_us - begin_us, 0.0),
                    "args": arguments,
                }
            )
    return msgspec.json.encode({"traceEvents": events, "displayTimeUnit": "ms"})


def _name(pid: int, name: str) -> dict[str, object]:
    return {"name": "process_name", "ph": "M", "pid": pid, "args": {"name": name}}
