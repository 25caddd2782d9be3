"""What depends on the processor, as on others: tests marked `every_processor`, with kernels compiled for these."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.margins import Margins
from tests.processors import lesser
from tests.tpu_worker.compiler import needs_compiler


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(900)  # it is many tests, each with a timeout of its own
@pytest.mark.parametrize("processor", lesser())
def test_as_on_a_lesser_processor(processor: str, tmp_path: Path, margins: Margins) -> None:
    found = tmp_path / "margins.json"
    options = ["-q", "-x", "-m", "every_processor and not slow", f"--processor={processor}", f"--margins={found}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(Path(__file__).parent)],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    margins.take_in(found)
