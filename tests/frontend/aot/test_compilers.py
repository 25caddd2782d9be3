"""The compiling processes: what they answer is kept, what one of them dies of costs one program, and none is left behind."""

import asyncio
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from frontend.aot.compilers import CompilersError, RefusedError, compile_all
from frontend.aot.options import Options, read_options
from protocol.aot_messages import Drawn
from protocol.aot_report import ProgramReport
from protocol.errors import ExitCode
from tests.frontend.aot.stand_in import NAMES, drawn, program

ROOT = Path(__file__).parents[3]


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found, _ = read_options(["--max-num-seqs", "16", "--max-model-len", "8192", "--no-compilation-cache", "--jobs", "1"], {})
    return found


def run(options: Options, *told: str, heard: list[str] | None = None) -> tuple[Drawn, list[ProgramReport]]:
    """All programs, with processes that do as they are told. Nothing is left of them."""

    def report(done: ProgramReport, total: int) -> None:
        assert total == len(NAMES)
        if heard is not None:
            heard.append(done.name)

    try:
        return asyncio.run(compile_all(options, report, command(told)))
    finally:
        assert psutil.Process().children() == []
        assert list(Path(tempfile.gettempdir()).glob("engine-aot-*")) == []


def command(told: Sequence[str]) -> tuple[str, ...]:
    return (sys.executable, "-m", "tests.frontend.aot.stand_in", *told)


def errors(programs: list[ProgramReport]) -> dict[str, str]:
    return {program.name: program.error for program in programs if program.error}


def test_one_process_compiles_all_in_the_order_of_the_first_answer(options: Options) -> None:
    heard: list[str] = []
    found, programs = run(options, heard=heard)
    assert found == drawn() and programs == [program(name) for name in NAMES]
    assert heard == list(NAMES)


def test_several_processes_share_the_programs(options: Options) -> None:
    heard: list[str] = []
    _, programs = run(replace(options, jobs=3), heard=heard)
    assert programs == [program(name) for name in NAMES] and sorted(heard) == sorted(NAMES)


@pytest.mark.slow
def test_more_processes_than_programs(options: Options) -> None:
    _, programs = run(replace(options, jobs=20))
    assert programs == [program(name) for name in NAMES]


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("crash", "ended by signal 6: INTERNAL: Mosaic failed: bad tile"),
        pytest.param("killed", "ended by signal 9, as is done when memory runs out", marks=pytest.mark.slow),
        pytest.param("leave", "ended with code 3", marks=pytest.mark.slow),
        ("garbage", "wrote what is no answer"),
        pytest.param("half", "ended with code 0", marks=pytest.mark.slow),
        ("another", "answered something else"),
    ],
)
def test_what_dies_takes_one_program_with_it(options: Options, kind: str, why: str, jobs: int) -> None:
    _, programs = run(replace(options, jobs=jobs), f"{kind}=step 16x16")
    found = errors(programs)
    assert found.keys() == {"step 16x16"} and why in found["step 16x16"]
    assert [one for one in programs if not one.error] == [program(name) for name in NAMES if name != "step 16x16"]


@pytest.mark.slow
def test_every_program_kills(options: Options) -> None:
    _, programs = run(options, *(f"leave={name}" for name in NAMES))
    assert list(errors(programs)) == list(NAMES)


def test_a_process_that_cannot_begin_again(options: Options) -> None:
    _, programs = run(options, "leave=step 16x16", "refuse=second")
    found = errors(programs)
    assert list(found) == list(NAMES[2:]) and set(list(found.values())[1:]) == {"--tensor-parallel-size 3: no"}


def test_a_job_that_is_refused(options: Options) -> None:
    with pytest.raises(RefusedError, match="^--tensor-parallel-size 3: no$") as caught:
        run(options, "refuse")
    assert caught.value.exit_code == ExitCode.BAD_CONFIG


@pytest.mark.parametrize(("kind", "why"), [("crash", "signal 6: INTERNAL: Mosaic failed: bad tile"), ("garbage", "no answer")])
def test_the_first_process_does_not_begin(options: Options, kind: str, why: str) -> None:
    with pytest.raises(CompilersError, match=f"nothing can be compiled: .*{why}"):
        run(options, kind)


def test_a_stop_leaves_no_process(options: Options) -> None:
    async def stop_at(moment: int) -> None:
        heard = asyncio.Event()
        count = 0

        def report(done: ProgramReport, total: int) -> None:
            nonlocal count
            count += 1
            if count == moment:
                heard.set()

        hanging = compile_all(replace(options, jobs=2), report, command(["hang=step 512x4", "hang=grow"]))
        task = asyncio.create_task(hanging)
        await heard.wait()
        assert len(psutil.Process().children()) == 2
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert psutil.Process().children() == []

    asyncio.run(stop_at(2))
