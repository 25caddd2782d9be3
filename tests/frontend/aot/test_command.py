"""`engine-aot` as a process, with compiling processes that stand in: exit codes, what is written, and how it ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from protocol.aot_report import read_report
from protocol.clock import now
from protocol.errors import ExitCode
from tests.frontend.aot.stand_in import DIGEST, NAMES

ROOT = Path(__file__).parents[3]
ENGINE = ("--max-num-seqs", "16", "--max-model-len", "8192", "--no-compilation-cache", "--jobs", "2")
ENDS_WITHIN = 10  # seconds; it takes milliseconds, on a machine that is not loaded


def start(told: tuple[str, ...], arguments: tuple[str, ...]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.frontend.aot.command", *told, "--", *ENGINE, *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*arguments: str, told: tuple[str, ...] = ()) -> tuple[int, str, str]:
    with start(told, arguments) as process:
        said, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors, errors
    return process.returncode, said, errors


def test_all_is_well(tmp_path: Path) -> None:
    code, said, errors = run("--json", str(tmp_path / "r.json"))
    assert code == ExitCode.OK, errors
    assert said.startswith("llama-3.2-1b on v6e:1x1 (TPU v6e), tensor parallel 1, bfloat16") and "would help" not in said
    assert len(errors.splitlines()) == len(NAMES) and all(f"of {len(NAMES)}: " in line for line in errors.splitlines())
    report = read_report(str(tmp_path / "r.json"), "--json")
    assert report.model_digest == DIGEST and {one.name for one in report.programs} == set(NAMES)
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("copy=step 4x4", "step 4x4 copies cache or weights, 1 times: copy.1 = bf16[2048,64]"),
        pytest.param("uncompilable=grow", "grow does not compile: Mosaic does not know this", marks=pytest.mark.slow),
        ("killed=step 512x4", "step 512x4 does not compile: the compiling process was ended by signal 9"),
    ],
)
def test_a_problem_has_a_line_and_an_exit_code(tmp_path: Path, kind: str, line: str) -> None:
    code, said, _ = run("--json", str(tmp_path / "r.json"), told=(kind,))
    assert code == ExitCode.DOES_NOT_FIT and line in said
    assert {one.name for one in read_report(str(tmp_path / "r.json"), "--json").programs} == set(NAMES)


@pytest.mark.slow
def test_what_takes_no_more_is_told(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "tests.frontend.aot.command", "--", *ENGINE, "--json", str(tmp_path / "r.json")]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == ExitCode.CRASHED and "Traceback" not in done.stderr
    assert done.stderr.endswith("engine-aot: standard output takes nothing: No space left on device\n")
    assert read_report(str(tmp_path / "r.json"), "--json"), "what is to be kept was written before"


def test_a_model_that_does_not_fit() -> None:
    code, said, _ = run("--kv-cache-memory", "16M", told=("misfit=nothing",))
    assert code == ExitCode.DOES_NOT_FIT
    assert "does not fit on v6e:1x1: a sequence of 8192 tokens takes 0.25 GiB of KV cache" in said
    assert "\nwould help: --kv-cache-memory from 268435456 to " in said


@pytest.mark.parametrize(
    ("arguments", "told", "code", "said"),
    [
        (("--topology", "v9:1x1"), (), ExitCode.BAD_CONFIG, "engine-aot: --topology v9:1x1: no such chip is known"),
        (("--model", "nobody"), (), ExitCode.BAD_MODEL, "engine-aot: --model nobody: no such file or directory"),
        ((), ("refuse",), ExitCode.BAD_CONFIG, "engine-aot: --tensor-parallel-size 3: no"),
        ((), ("crash",), ExitCode.CRASHED, "engine-aot: nothing can be compiled: the compiling process was ended by signal 6"),
    ],
)
def test_refusals(arguments: tuple[str, ...], told: tuple[str, ...], code: int, said: str) -> None:
    found, out, errors = run(*arguments, told=told)
    assert (found, out) == (code, "") and errors.startswith(said) and len(errors.splitlines()) == 1


@pytest.fixture
def hanging() -> Iterator[subprocess.Popen[str]]:
    """One of whose two processes hangs, and the other has done all the rest."""
    with start(("hang=step 512x16",), ()) as process:
        assert process.stderr is not None
        for _ in range(len(NAMES) - 1):
            assert " of 6: " in process.stderr.readline()
        yield process
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_a_signal_ends_it_and_all_that_compile(hanging: subprocess.Popen[str], number: signal.Signals) -> None:
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("whoever started the tests has children ignore it, as nohup does")
    children = psutil.Process(hanging.pid).children(recursive=True)
    groups = {os.getpgid(child.pid) for child in children}
    assert len(groups) == 2 and os.getpgid(hanging.pid) not in groups, "the terminal's Ctrl-C reaches the command alone"
    began = now()
    hanging.send_signal(number)
    said, errors = hanging.communicate(timeout=60)
    assert hanging.returncode == 128 + number and now() - began < ENDS_WITHIN
    assert (said, errors) == ("", "") and not any(child.is_running() for child in children)


def test_what_compiles_ends_with_it_even_when_it_is_killed(hanging: subprocess.Popen[str]) -> None:
    children = psutil.Process(hanging.pid).children(recursive=True)
    hanging.kill()
    hanging.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
