"""`engine-bench device`: its figures by hand, and the whole of it on a small model."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from frontend.bench.__main__ import main
from frontend.bench.device import bytes_of_step, decode_rate, known_bandwidth
from frontend.client.steps import Steps
from protocol.errors import EngineError
from tests.roofline_report import LLAMA_1B

ROOT = Path(__file__).resolve().parents[3]


def steps_of(*rows: tuple[int, int, int]) -> Steps:
    """(decoding rows, prompt tokens, nanoseconds until the end of the step)."""
    decodes, prefill, took = np.array(rows, np.int64).T
    return Steps(
        {
            "step_id": np.arange(len(rows)),
            "num_decodes": decodes,
            "num_prefill_tokens": prefill,
            "finished_ns": np.cumsum(took),
        }
    )


def test_bytes_are_those_of_weights_and_cache() -> None:
    # Of 16 layers 2 x 2048 x 2048 for queries and outputs, 2 x 2048 x 512 for keys and values, 3 x 2048 x 8192; the head.
    weights = 16 * (2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192) + 2048 * 128256
    assert bytes_of_step(LLAMA_1B, 0, 500) == 2 * weights
    assert bytes_of_step(LLAMA_1B, 64, 500) == 2 * weights + 64 * 500 * 32768  # 32 KiB a token


def test_a_rate_is_that_of_the_longest_run_of_full_steps() -> None:
    short, full, long = (4, 0, 9000), (4, 0, 2000), (4, 0, 77000)
    steps = steps_of((4, 8, 1000), *[short] * 10, (3, 0, 500), long, *[full] * 20, (2, 0, 400))
    found = decode_rate([steps], LLAMA_1B, 4, 500, 1e15)
    assert (found.rows, found.steps, found.step_us) == (4, 20, 2.0)
    assert found.tokens_per_second == pytest.approx(2e6)
    assert found.roofline_us == pytest.approx(bytes_of_step(LLAMA_1B, 4, 500) / 1e9)
    assert found.share == pytest.approx(bytes_of_step(LLAMA_1B, 4, 500) / 2e9)
    unknown = decode_rate([steps], LLAMA_1B, 4, 500, None)
    assert unknown.roofline_us is unknown.share is None


def test_of_several_passes_the_fastest_that_is_long_enough_counts() -> None:
    passes = [steps_of(*[(4, 0, took)] * number) for took, number in ((3000, 20), (2000, 12), (1000, 8))]
    found = decode_rate(passes, LLAMA_1B, 4, 500, None)
    assert (found.steps, found.step_us) == (11, 2.0)


def test_rows_that_never_decode_together_are_no_rate() -> None:
    with pytest.raises(EngineError, match="8 rows decoded together in 3 steps.*fewer --rows"):
        decode_rate([steps_of(*[(8, 0, 10)] * 3, *[(7, 0, 10)] * 30)], LLAMA_1B, 8, 500, None)


def test_bandwidth_goes_by_the_whole_name() -> None:
    assert known_bandwidth("NVIDIA H100 80GB HBM3") == 3350e9
    assert known_bandwidth("NVIDIA L40S") == 864e9 and known_bandwidth("NVIDIA L4") == 300e9
    assert known_bandwidth("NVIDIA L400") is None and known_bandwidth("") is None


@pytest.mark.parametrize("flags", [("--rows", "0"), ("--bandwidth", "-1"), ("--context", "1"), ("--json", "/nowhere/at/all.json")])
def test_absurd_flags_are_refused(flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "--device", "cpu", "--tiny", *flags]) == 64
    assert flags[0] in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_script_measures_a_small_model(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    command = [
        str(ROOT / "scripts/bench_gpu"),
        "--tiny",
        "--device",
        "cpu",
        "--bandwidth",
        "1",
        "--rows",
        "1",
        "3",
        "--json",
        str(path),
    ]
    environ = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "VIRTUAL_ENV": sys.prefix, "HOME": str(Path.home())}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    assert done.returncode == 0, done.stderr
    assert "req/s" in done.stdout and "roofline" in done.stdout
    figures = json.loads(path.read_text())
    assert (figures["model"], figures["device"], figures["bandwidth"]) == ("tiny", "cpu", 1e9)
    assert "device cpu" in figures["engine"]
    assert [run["depth"] for run in figures["load"]] == [1, 2] and all(run["requests_per_second"] > 0 for run in figures["load"])
    assert [one["rows"] for one in figures["decode"]] == [1, 3]
    for one in figures["decode"]:
        assert one["steps"] > 8 and one["tokens_per_second"] == pytest.approx(one["rows"] / one["step_us"] * 1e6)
        assert one["share"] == pytest.approx(one["roofline_us"] / one["step_us"])
