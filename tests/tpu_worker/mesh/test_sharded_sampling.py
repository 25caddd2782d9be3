"""The same logits give the same tokens on one shard and on several, whatever is asked for."""

import json
import subprocess
import sys

import pytest


@pytest.mark.parametrize("cases", [10, pytest.param(300, marks=pytest.mark.slow)])
def test_tokens_do_not_depend_on_the_number_of_shards(cases: int) -> None:
    command = [sys.executable, "-m", "tests.tpu_worker.mesh.sharded_sampling", str(cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout) == []
