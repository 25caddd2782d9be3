"""What depends on the processor, as on others: tests marked `every_processor`, with kernels compiled for these."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ahead import ahead
from tests.margins import Margins
from tests.processors import lesser
from tests.tpu_worker.compiler import needs_compiler


@pytest.fixture(scope="module")
def tried(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Any]]:
    def run(processor: str) -> tuple[subprocess.CompletedProcess[str], Path]:
        directory = tmp_path_factory.mktemp(processor)
        found = directory / "margins.json"
        options = ["-q", "-x", "-m", "every_processor and not slow", f"--processor={processor}", f"--margins={found}"]
        command = [sys.executable, "-m", "pytest", *options, str(Path(__file__).parent)]
        environ = {**os.environ, "XDG_CACHE_HOME": str(directory)}
        return subprocess.run(
            command, env=environ, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
        ), found

    with ahead(request, "processor", run) as result:
        yield result


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(900)  # it is many tests, each with a timeout of its own
@pytest.mark.parametrize("processor", lesser())
def test_as_on_a_lesser_processor(processor: str, tried: Callable[[str], Any], margins: Margins) -> None:
    done, found = tried(processor)
    assert done.returncode == 0, done.stdout + done.stderr
    margins.take_in(found)
