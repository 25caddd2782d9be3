"""Streams outputs as server-sent events, one write per delta."""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from starlette.types import Receive, Scope, Send

from frontend.server.api.errors import EXPECTED, ApiError, ClientGone, from_engine
from frontend.server.api.jobs import Output, fail_on_error, notes
from frontend.server.api.keep_alive import KeepAlive
from frontend.server.generation import TextDelta, TextGeneration
from frontend.server.http.exchange import STREAM

_LOG = logging.getLogger(__name__)

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the events
]

Result = TypeVar("Result")


class Events(Protocol):
    """The events of one stream, in the format of its route. Each method returns whole events as they are sent; empty: none."""

    def begin(self) -> bytes:
        """Before anything is generated."""

    def add(self, index: int, generation: TextGeneration, delta: TextDelta) -> bytes:
        """What `delta` of output `index` brings."""

    def end(self, generations: Sequence[TextGeneration]) -> bytes:
        """After the last delta. `generations`: all of the stream."""

    def fail(self, error: ApiError) -> bytes:
        """Instead of what is left: the status is sent, so the stream itself has to tell."""


class Answering(Events, Protocol):
    """The answer to one request in the format of its route, as a stream or whole."""

    def whole(self, generations: Sequence[TextGeneration], outputs: Sequence[Output]) -> bytes:
        """The JSON of the answer to a request that does not stream."""


class EventStream:
    """The ASGI answer of a streaming request. Whatever ends it, no generation is left running."""

    def __init__(self, generations: Sequence[TextGeneration], events: Events) -> None:
        self._generations = generations
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Streams until every generation has ended or the client leaves."""
        interval: float = scope["app"].state.engine.config.stream_keep_alive
        try:
            await unless_gone(receive, self._write(send, scope.get("extensions", {}).get(STREAM, send), interval))
        except ClientGone:
            pass
        finally:
            for generation in self._generations:
                generation.cancel()

    async def _write(self, send: Send, more: Send, interval: float) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS + notes(self._generations)})
        events = self._events
        try:
            if data := events.begin():
                await more({"type": "http.response.body", "body": data, "more_body": True})
            async with KeepAlive(more, interval) as stream:
                async for index, generation, delta in interleave(self._generations):
                    fail_on_error(delta)
                    if data := events.add(index, generation, delta):
                        await stream.write(data)
            end = events.end(self._generations)
        except EXPECTED as error:
            end = events.fail(from_engine(error))
        except Exception as error:  # noqa: BLE001 - logged, and told to the client
            _LOG.exception("a stream failed")
            end = events.fail(from_engine(error))
        await more({"type": "http.response.body", "body": end})


async def interleave(generations: Sequence[TextGeneration]) -> AsyncIterator[tuple[int, TextGeneration, TextDelta]]:
    """The deltas of several generations as they come, each with its index."""
    if len(generations) == 1:
        (generation,) = generations
        async for delta in generation:
            yield 0, generation, delta
        return
    # As deep as there are generations: when the client reads slowly, deltas merge in the router instead of piling up here.
    queue: asyncio.Queue[tuple[int, TextDelta | Exception]] = asyncio.Queue(len(generations))
    pumps = [asyncio.ensure_future(_pump(index, generation, queue)) for index, generation in enumerate(generations)]
    running = len(pumps)
    try:
        while running:
            index, item = await queue.get()
            if isinstance(item, Exception):
                raise item
            running -= item.finish_reason is not None
            yield index, generations[index], item
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(index: int, generation: TextGeneration, queue: "asyncio.Queue[tuple[int, TextDelta | Exception]]") -> None:
    try:
        async for delta in generation:
            await queue.put((index, delta))
    except Exception as error:  # noqa: BLE001 - handed to the reader, who raises it
        await queue.put((index, error))


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled when the client leaves before it is done. The request's body was read.

    Raises ClientGone, and what `work` raises.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
