"""What is read off recorded steps, on steps that were made up, and on a running engine's."""

import json
from pathlib import Path

import numpy as np
import pytest

from frontend.bench.trace.__main__ import main
from frontend.bench.trace.chrome import chrome_trace
from frontend.bench.trace.stages import idle_share, stage_times
from frontend.client import Client, SamplingParams
from frontend.client.steps import Steps
from protocol.errors import ExitCode
from tests.integration.launching import SIMULATED, launch

_US = 1000  # nanoseconds


def steps(*device: tuple[int, int, int]) -> Steps:
    """Steps of (worker, start, end on the device), in microseconds, with stages of known length around them."""
    worker, started, finished = (np.array(column, np.int64) for column in zip(*device, strict=True))
    started, finished = started * _US, finished * _US
    columns = {
        "worker": worker,
        "step_id": np.arange(len(device)),
        "num_decodes": np.ones(len(device), np.int64),
        "num_prefill_tokens": np.zeros(len(device), np.int64),
        "scheduled_ns": started - 10 * _US,
        "sent_ns": started - 7 * _US,
        "received_ns": started - 5 * _US,
        "prepared_ns": started - 4 * _US,
        "dispatched_ns": started - 1 * _US,
        "started_ns": started,
        "finished_ns": finished,
        "collected_ns": finished + 6 * _US,
        "answered_ns": finished + 14 * _US,
        "delivered_ns": np.where(np.arange(len(device)) == 0, 0, finished + 20 * _US),
    }
    return Steps(columns)


def test_the_last_steps_are_as_many_as_were_asked_for() -> None:
    three = steps((0, 0, 40), (0, 40, 80), (0, 80, 90))
    assert [three.last(count)["step_id"].tolist() for count in (0, 1, 3, 9)] == [[], [2], [0, 1, 2], [0, 1, 2]]


def test_idle_share_counts_the_gaps() -> None:
    assert idle_share(steps((0, 0, 40), (0, 40, 80), (0, 100, 120))) == pytest.approx(20 / 120)


def test_idle_share_is_the_mean_of_the_workers() -> None:
    assert idle_share(steps((0, 0, 50), (1, 0, 25), (0, 50, 100), (1, 75, 100))) == pytest.approx(0.25)


def test_stage_times() -> None:
    times = stage_times(steps((0, 0, 40), (0, 40, 80)))
    assert (times.scheduler, times.pipe, times.worker, times.answer) == (3.0, 2.0 + 8.0, 4.0 + 6.0, 8.0)


def test_the_trace_has_a_lane_for_each_process_and_device() -> None:
    events = json.loads(chrome_trace(steps((0, 0, 40), (1, 40, 80))))["traceEvents"]
    lanes = {event["args"]["name"]: event["pid"] for event in events if event["ph"] == "M"}
    assert set(lanes) == {"frontend", "scheduler_proc", "tpu_worker 0", "tpu_worker 1", "device 0", "device 1"}
    runs = [event for event in events if event.get("cat") == "run"]
    assert [(run["pid"], run["ts"], run["dur"]) for run in runs] == [
        (lanes["device 0"], 10.0, 40.0),
        (lanes["device 1"], 50.0, 40.0),
    ]
    assert [event["name"] for event in events if event.get("cat") == "deliver"] == ["deliver 1"]


def test_engine_trace_on_a_running_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "trace.json"
    with launch(tmp_path, *SIMULATED) as engine:
        with Client(engine.socket) as client:
            begun = len(client.trace())  # an engine decodes once before it serves
            client.generate([[1, 2, 3]], SamplingParams(max_tokens=30, ignore_eos=True))
            recorded = client.trace()
        assert main([str(tmp_path / "none" / "trace.json"), "--ipc", str(engine.socket)]) == ExitCode.BAD_CONFIG
        assert main([str(output), "--ipc", str(engine.socket)]) == 0
    assert len(recorded) == begun + 30
    order = ["scheduled_ns", "sent_ns", "received_ns", "prepared_ns", "dispatched_ns", "started_ns", "finished_ns", "collected_ns"]
    for earlier, later in zip(order, [*order[1:], "answered_ns"], strict=True):
        # The receiver may read before the sender goes on, the simulated device may begin as soon as it was asked.
        if (earlier, later) not in {("sent_ns", "received_ns"), ("dispatched_ns", "started_ns")}:
            assert (recorded[earlier] <= recorded[later]).all(), (earlier, later)
    assert (recorded["started_ns"][1:] >= recorded["finished_ns"][:-1]).all(), "the device runs one step at a time"
    assert len([e for e in json.loads(output.read_bytes())["traceEvents"] if e.get("cat") == "run"]) == begun + 30
    said = capsys.readouterr()
    assert f"{begun + 30} steps, device idle" in said.out
    assert "none/trace.json: No such file or directory; name another file to write" in said.err
