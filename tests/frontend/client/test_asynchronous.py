"""The asyncio client on a running engine: what it does differently from the blocking one, and that it does the same."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from frontend.client import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    EngineUnavailable,
    InvalidRequest,
    RequestLost,
    SamplingParams,
)
from frontend.server.ipc.server import IpcServer
from tests.frontend.server.ipc.serving import Served, serving

SHORT = SamplingParams(max_tokens=6, seed=1, ignore_eos=True)
ENDLESS = SamplingParams(seed=1, ignore_eos=True)


def connected(path: Path, test: Callable[[AsyncClient], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(60), AsyncClient(f"unix://{path}") as client:
            await test(client)

    asyncio.run(run())


def test_it_answers_as_the_blocking_client_does(served: Served, client: Client) -> None:
    prompts, messages = ["One", "Two", "Three"], [{"role": "user", "content": "Hello"}]
    outputs, chat = client.generate(prompts, SHORT), client.chat(messages, SHORT)

    async def test(other: AsyncClient) -> None:
        assert await other.generate(prompts, SHORT) == outputs
        assert (await other.chat(messages, SHORT)).text == chat.text
        assert "".join([delta.text async for delta in other.stream("Two", SHORT)]) == outputs[1].text
        assert await other.submit("Three", SHORT).result(timeout=30) == outputs[2]
        assert (await other.health()).status == "ok"
        assert (await other.stats()).waiting == 0
        assert len(await other.trace()) > 0

    connected(served.path, test)


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


def test_errors(served: Served) -> None:
    async def test(client: AsyncClient) -> None:
        with pytest.raises(InvalidRequest) as refused:
            await client.generate([[49152]], SHORT)
        assert refused.value.param == "prompt"
        with pytest.raises(InvalidRequest) as refused:
            client.stream("a", SamplingParams(temperature=-1.0))
        assert refused.value.param == "temperature"
        with pytest.raises(DeadlineExceeded):
            await client.submit("endless", ENDLESS).result(timeout=0.05)
        with pytest.raises(DeadlineExceeded, match="0 of 1"):
            await client.generate("endless", ENDLESS, timeout=0.05)

    connected(served.path, test)


def test_the_engine_goes_while_requests_wait(served: Served, tmp_path: Path) -> None:
    async def test() -> None:
        stop = asyncio.Event()

        async def ask() -> None:
            async with AsyncClient(tmp_path / "api.sock") as client:
                stream = client.stream("endless", ENDLESS)
                await anext(stream)
                stop.set()
                with pytest.raises(RequestLost):
                    async for _ in stream:
                        pass
                with pytest.raises(RequestLost):
                    await client.health()

        with serving(served.running, tmp_path / "api.sock"):
            asking = asyncio.ensure_future(ask())
            await stop.wait()
        await asking

    asyncio.run(test())


def test_nobody_there_not_connected_and_not_ready(served: Served, tmp_path: Path) -> None:
    async def test() -> None:
        with pytest.raises(EngineUnavailable, match="engine-launch"):
            await AsyncClient(tmp_path / "gone.sock").connect()
        with pytest.raises(EngineUnavailable, match="not connected"):
            await AsyncClient(tmp_path / "gone.sock").generate("a")
        server = IpcServer(tmp_path / "api.sock", served.running.engine.config)
        server.bind()
        with pytest.raises(DeadlineExceeded, match="ready"):
            await AsyncClient(tmp_path / "api.sock", connect_timeout=0.05).connect()
        early = asyncio.ensure_future(AsyncClient(tmp_path / "api.sock").connect())
        blocking = asyncio.ensure_future(asyncio.to_thread(Client, tmp_path / "api.sock"))
        with pytest.raises(DeadlineExceeded, match="ready"):
            await asyncio.to_thread(Client, tmp_path / "api.sock", connect_timeout=0.05)
        server.close()  # it ended while it was starting
        for connecting in (early, blocking):
            with pytest.raises(EngineUnavailable):
                await connecting

    asyncio.run(test())
