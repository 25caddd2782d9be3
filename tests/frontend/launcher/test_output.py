"""What the launcher says when nobody can hear it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SAY = "from frontend.launcher.output import *; open_standard_descriptors(); announce('ready'); say('on'); finish()"
LOWEST = """
import os
from frontend.launcher.output import open_standard_descriptors
open_standard_descriptors()
print(os.open("/", os.O_RDONLY), file=open({!r}, "w"))
"""


def run(program: str, redirections: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-c", f'"{sys.executable}" -P {program} {redirections}']
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def closed_pipe() -> Iterator[int]:
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


@pytest.mark.parametrize(("redirections", "reason"), [("> /dev/full", "No space left on device"), (">&-", "Bad file descriptor")])
def test_what_standard_output_does_not_take_goes_to_standard_error(redirections: str, reason: str) -> None:
    done = run(f'-c "{SAY}"', redirections)
    assert done.returncode == 0
    assert done.stderr == f"engine-launch: standard output takes nothing ({reason}), so here: ready\nengine-launch: on\n"


def test_nobody_reads_standard_output(closed_pipe: int) -> None:
    command = [sys.executable, "-P", "-c", SAY]
    done = subprocess.run(command, stdout=closed_pipe, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert done.returncode == 0
    assert done.stderr == "engine-launch: standard output takes nothing (Broken pipe), so here: ready\nengine-launch: on\n"


@pytest.mark.parametrize("redirections", ["2> /dev/full", "2>&-", "> /dev/full 2>&1"])
def test_nobody_reads_standard_error(redirections: str) -> None:
    done = run(f'-c "{SAY}"', redirections)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == ("" if "2>&1" in redirections else "ready\n")


def test_nothing_takes_the_place_of_a_closed_standard_output(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(LOWEST.format(str(tmp_path / "found")))
    run(str(program), "<&- >&- 2>&-")
    assert int((tmp_path / "found").read_text()) > 2


def test_help_into_a_pipe_that_is_closed(closed_pipe: int) -> None:
    command = [sys.executable, "-P", "-m", "frontend.launcher", "--help"]
    done = subprocess.run(command, stdout=closed_pipe, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
