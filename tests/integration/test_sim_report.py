"""An engine on a simulated chip, as processes: its steps take what the report says, to the nanosecond."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from frontend.bench.stand_in import FLAGS, write_stand_in
from frontend.client import Client, SamplingParams
from protocol.aot_report import StepTime
from protocol.model_sizes import ModelSizes
from tests.integration.launching import launch, refuse
from tests.roofline_report import roofline_report

SIZES = ModelSizes(2, 64, 4, 2, 16, 128, 0, 1000)
SEQS, TOKENS, PROMPT, OUTPUT = 16, 32, 40, 5


def test_steps_take_what_the_report_says(tmp_path: Path) -> None:
    report = roofline_report(sizes=SIZES, max_num_seqs=SEQS, max_num_batched_tokens=TOKENS, max_model_len=512)
    time = StepTime(fixed=500.0, per_row=50.0, per_context_token=1.0, per_pair=0.25)
    programs = tuple(replace(program, time=time if program.tokens else StepTime(fixed=10.0)) for program in report.programs)
    path, model = tmp_path / "r.json", tmp_path / "m"
    path.write_bytes(msgspec.json.encode(replace(report, programs=programs)))
    model.mkdir()
    write_stand_in(model, SIZES, 512)
    flags = ("--device", "sim", "--sim-report", str(path), "--no-enable-prefix-caching")
    with launch(tmp_path, "--model", str(model), *FLAGS, *flags) as engine, Client(engine.socket) as client:
        assert "sim of v6e:1x1" in engine.ready_line
        params = SamplingParams(max_tokens=OUTPUT, temperature=0.0, ignore_eos=True)
        (output,) = client.generate([list(range(100, 100 + PROMPT))], params, progress=False)
        steps = client.trace()
    assert len(output.token_ids) == OUTPUT and output.text.strip()
    first, second = sum(range(1, TOKENS + 1)), sum(range(TOKENS + 1, PROMPT + 1))
    expected = [10 + 500 + 0.25 * first, 500 + 0.25 * second] + [500 + 50 + PROMPT + index for index in range(1, OUTPUT)]
    taken = (steps["finished_ns"] - steps["started_ns"])[-len(expected) :]  # before them the engine tried itself
    assert taken.tolist() == [int(1000 * micros) for micros in expected]
    code, said = refuse(tmp_path, "--model", str(model), *FLAGS, *flags, "--max-num-seqs", "8")
    assert code == 64 and f"--sim-report {path}: nothing is said of step 32x8" in said


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "frontend.bench", "overlap", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_benchmark_compares_chips(tmp_path: Path) -> None:
    """By reports of Llama 3.2 1B, of which nothing is here: 3 at a time, each step in the smallest bucket or that of a prompt."""
    paths = []
    for chip in ("v5e", "v6e"):
        paths.append(tmp_path / f"{chip}.json")
        paths[-1].write_bytes(msgspec.json.encode(roofline_report(chip)))
    done = bench("--sim-report", *map(str, paths), "--num-prompts", "9", "--random-output-len", "60")
    assert done.returncode == 0, done.stderr
    figures = msgspec.json.decode(done.stdout.splitlines()[-1])
    assert [(run["chip"], run["concurrency"], run["depth"]) for run in figures["overlap"]] == [
        (f"{chip}:1x1", 3, depth) for chip in ("v5e", "v6e") for depth in (1, 2)
    ]
    assert figures["ratios"].keys() == {"v5e:1x1 3", "v6e:1x1 3"}
    for run in figures["overlap"]:  # 2.47 GB of weights at 819 and 1640 GB/s, and 0.03 ms of cache
        least = {"v5e:1x1": 3017, "v6e:1x1": 1507}[run["chip"]]
        assert least < run["device_us"] < 1.1 * least
    assert "--sim-report says how long steps take" in bench("--sim-report", str(paths[0]), "--sim-decode-us", "5").stderr
    assert "absent.json: No such file" in bench("--sim-report", "absent.json").stderr
