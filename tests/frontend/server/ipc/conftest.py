"""One engine for all tests of the IPC server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.frontend.server.api.running import RunningEngine, demo_config, running_engine
from tests.frontend.server.ipc.serving import Served, serving


@pytest.fixture(scope="session")
def running() -> Iterator[RunningEngine]:
    with running_engine(demo_config()) as engine:
        yield engine


@pytest.fixture
def served(running: RunningEngine, tmp_path: Path) -> Iterator[Served]:
    with serving(running, tmp_path / "api.sock") as served:
        yield served
