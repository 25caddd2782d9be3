"""One engine for all tests of what is typed at a terminal."""

from collections.abc import Iterator

import pytest

from tests.frontend.server.api.running import RunningEngine, demo_config, running_engine
from tests.frontend.server.ipc.serving import Served, serving


@pytest.fixture(scope="session")
def running() -> Iterator[RunningEngine]:
    with running_engine(demo_config()) as running:
        yield running


@pytest.fixture(scope="session")
def served(running: RunningEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(running, tmp_path_factory.mktemp("terminal") / "api.sock") as served:
        yield served
