"""One engine and one server for all tests of the client."""

from collections.abc import Iterator

import pytest

from frontend.client import Client
from tests.frontend.client.faces import FACES, connect
from tests.frontend.server.api.running import demo_config, running_engine
from tests.frontend.server.ipc.serving import Served, serving


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with running_engine(demo_config()) as running, serving(running, tmp_path_factory.mktemp("client") / "api.sock") as served:
        yield served


@pytest.fixture(params=FACES)
def face(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def client(face: str, served: Served) -> Iterator[Client]:
    with connect(face, served.path) as client:
        yield client
