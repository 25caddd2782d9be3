"""One engine for all tests of the HTTP interface; a client for each."""

from collections.abc import Iterator

import httpx
import pytest

from tests.frontend.server.api.running import RunningEngine, demo_config, running_engine


@pytest.fixture(scope="session")
def running() -> Iterator[RunningEngine]:
    with running_engine(demo_config()) as engine:
        yield engine


@pytest.fixture(scope="session")
def http(running: RunningEngine) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.url, timeout=60) as client:
        yield client
