"""Engines that the integration tests share."""

from collections.abc import Iterator

import pytest

from tests.integration.launching import SIMULATED, Engine, launch


@pytest.fixture(scope="session")
def simulated_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One worker with the simulated device. Shared: a test that stops or kills anything starts its own."""
    with launch(tmp_path_factory.mktemp("simulated"), *SIMULATED) as engine:
        yield engine
