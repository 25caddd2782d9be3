"""The end of the engine, as clients over HTTP see it."""

import asyncio
import json
import logging

import httpx
import pytest

from frontend.errors import EngineUnavailable, ShuttingDown
from protocol.errors import EngineError
from tests.frontend.server.api.running import RunningEngine, demo_config, running_engine

_ENDLESS = {"prompt": "Hello", "ignore_eos": True, "max_tokens": 8000}


async def _under_way(running: RunningEngine, count: int) -> None:
    while running.engine.router.num_requests < count:
        await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("error", "code"),
    [(ShuttingDown("shut down"), "shutting_down"), (EngineUnavailable("the scheduler is gone"), "engine_unavailable")],
)
def test_every_open_answer_ends_with_503_or_an_error_event(error: EngineError, code: str, caplog: pytest.LogCaptureFixture) -> None:
    async def clients(url: str, running: RunningEngine) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client, asyncio.timeout(60):
            plain = asyncio.ensure_future(client.post("/v1/completions", json=_ENDLESS))
            listed = asyncio.ensure_future(client.post("/v1/completions", json=_ENDLESS | {"n": 3, "stream": True}))
            streamed = asyncio.ensure_future(client.post("/v1/chat/completions", json={
                "messages": [{"role": "user", "content": "Hi"}], "ignore_eos": True, "stream": True,
            }))  # fmt: skip
            _, unread = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
            unread.transport.pause_reading()  # type: ignore[attr-defined]
            body = json.dumps(_ENDLESS | {"stream": True, "n": 100}).encode()
            unread.write(b"POST /v1/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_under_way(running, 105), running.loop))
            running.loop.call_soon_threadsafe(running.engine.router.fail_all, error)
            answer = await plain
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, code)
            assert int(answer.headers["retry-after"]) > 0
            for stream in (await listed, await streamed):
                events = stream.text.removesuffix("\n\n").split("\n\n")
                assert events[-1] == "data: [DONE]"
                assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == code
            refused = await client.post("/v1/completions", json=_ENDLESS)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, code)
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(running.server.finish(), running.loop))
            assert not running.server.connections
            unread.transport.abort()

    with caplog.at_level(logging.WARNING), running_engine(demo_config()) as running:
        asyncio.run(clients(running.url, running))
    assert not [record for record in caplog.records if record.exc_info]
