"""The engine's page in a real browser: Chromium, driven by Selenium in an environment of its own."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.environments import Environment
from tests.clients.test_clients import PROGRAMS, run
from tests.integration.launching import START_LIMIT, Engine, launch, wait_for

BROWSER = ("chromium", "chromedriver")
pytestmark = [
    pytest.mark.clients,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not all(map(shutil.which, BROWSER)), reason="there is no Chromium: Debian's chromium and chromium-driver"),
]

SELENIUM = Environment("selenium", ("selenium>=4.30",))
PROGRAM = PROGRAMS / "page_chromium.py"
# Steps that last longer than a busy machine needs between two of them.
SLOW = ("--device", "sim", "--sim-decode-us", "20000", "--served-model-name", "demo")


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with launch(tmp_path_factory.mktemp("page"), *SLOW) as engine:
        yield engine


@pytest.mark.parametrize("case", ["lanes", "answers", "computation"])
def test_the_page(watched: Engine, case: str) -> None:
    run(SELENIUM.python(), PROGRAM, watched.address, case)


def test_an_engine_at_depth_one_shows_itself(tmp_path: Path) -> None:
    with launch(tmp_path, *SLOW, "--queue-depth", "1") as engine:
        run(SELENIUM.python(), PROGRAM, engine.address, "at_depth_one")


def test_a_key_is_asked_for_and_kept(tmp_path: Path) -> None:
    with launch(tmp_path, *SLOW, "--api-key", "open-sesame") as engine:
        run(SELENIUM.python(), PROGRAM, engine.address, "key", "open-sesame")


def test_from_either_of_two_frontends_both_workers_are_seen(tmp_path: Path) -> None:
    with launch(tmp_path, *SLOW, "--workers", "2", "--frontends", "2") as engine:
        for _ in range(2):  # whichever takes the connection
            run(SELENIUM.python(), PROGRAM, engine.address, "several")


def kill_worker(engine: Engine) -> None:
    """And waits for its successor's process."""
    victim = engine.child("tpu_worker-0")
    victim.kill()
    wait_for(lambda: any(one.name() == "tpu_worker-0" and one.pid != victim.pid for one in engine.children()), "another worker")


def test_the_page_says_what_is_lost_and_goes_on(tmp_path: Path) -> None:
    python = SELENIUM.python()
    with launch(tmp_path / "first", *SLOW, "--restart-delay", "1.5") as engine:
        port = engine.address.rpartition(":")[2]
        command: list[str | Path] = [python, PROGRAM, engine.address, "loss"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as page:
            assert page.stdout is not None
            said = iter(page.stdout.readline, "")

            def wait(word: str) -> None:
                heard = next(said, "")
                assert heard.strip() == word, heard + page.communicate()[0]

            wait("serves")
            kill_worker(engine)
            kill_worker(engine)  # the first is replaced at once, the second after a while
            wait("recovered")
            assert engine.stop() == 0
            wait("away")
            with launch(tmp_path / "second", *SLOW, "--port", port):
                rest = page.communicate(timeout=START_LIMIT)[0]
                assert page.returncode == 0, rest
