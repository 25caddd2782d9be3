"""What only the asyncio client does: many things at a time, and tasks that are cancelled."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from frontend.client import (
    AsyncClient,
    EngineUnavailable,
    RequestLost,
    SamplingParams,
)
from tests.frontend.server.ipc.serving import Served

SHORT = SamplingParams(max_tokens=6, seed=1, ignore_eos=True)
ENDLESS = SamplingParams(seed=1, ignore_eos=True)


def connected(path: Path, test: Callable[[AsyncClient], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(60), AsyncClient(f"unix://{path}") as client:
            await test(client)

    asyncio.run(run())


def test_many_streams_at_a_time(served: Served) -> None:
    async def test(client: AsyncClient) -> None:
        async def count(index: int) -> int:
            return sum([len(delta.token_ids) async for delta in client.stream([index + 1], SHORT)])

        assert await asyncio.gather(*map(count, range(50))) == [6] * 50

    connected(served.path, test)


def test_leaving_a_stream_or_cancelling_a_task_aborts_the_request(served: Served) -> None:
    async def test(client: AsyncClient) -> None:
        async for _ in client.stream("endless", ENDLESS):
            break
        stream = client.stream("endless", ENDLESS)
        await anext(stream)
        stream.close()
        assert [delta async for delta in stream] == []
        for waiting in (client.generate("endless", ENDLESS), client.chat([{"role": "user", "content": "a"}], ENDLESS)):
            task = asyncio.ensure_future(waiting)
            await client.generate("meanwhile", SHORT)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        handle = client.submit("endless", ENDLESS)
        handle.cancel()
        with pytest.raises(RequestLost):
            await handle.result()
        await client.stats()  # what was cancelled has been said
        await asyncio.to_thread(served.running.wait_until_idle)

    connected(served.path, test)


def test_two_tasks_may_wait_for_one_request(served: Served) -> None:
    async def test(client: AsyncClient) -> None:
        handle = client.submit("Two", SHORT)
        first, second = await asyncio.gather(handle.result(), handle.result())
        assert first == second

    connected(served.path, test)


def test_a_client_that_is_not_connected(tmp_path: Path) -> None:
    async def test() -> None:
        with pytest.raises(EngineUnavailable, match="not connected"):
            await AsyncClient(tmp_path / "gone.sock").generate("a")

    asyncio.run(test())
