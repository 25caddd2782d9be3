"""Pages that watch an engine while it is measured, against one that is not measured."""

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from frontend.bench.http_client import HttpError
from frontend.bench.watchers import watching
from frontend.server.ui import feed
from tests.frontend.server.api.running import RunningEngine, another_front, demo_config, running_engine


@pytest.fixture(scope="module")
def running() -> Iterator[RunningEngine]:
    with running_engine(demo_config()) as engine:
        yield engine


def test_so_many_pages_watch_during_the_block(running: RunningEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MOST_WATCHERS", 2)
    with another_front(running) as http:

        async def watch(pages: int) -> int:
            async with watching(str(http.base_url), pages):
                answer = await asyncio.to_thread(httpx.get, f"{http.base_url}/ui/events")
                return answer.status_code

        assert asyncio.run(watch(2)) == 429


def test_an_engine_that_does_not_let_them_is_said_not_to(running: RunningEngine) -> None:
    async def watch(url: str) -> None:
        async with watching(url, 1):
            raise AssertionError("nobody watches")

    with another_front(running, ui=False) as http, pytest.raises(HttpError, match="ended with status 404"):
        asyncio.run(watch(str(http.base_url)))


def test_without_pages_nobody_is_asked() -> None:
    async def watch() -> None:
        async with watching("http://127.0.0.1:1", 0):
            pass

    asyncio.run(watch())
