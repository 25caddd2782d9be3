"""Streams outputs as server-sent events, one write per delta."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from starlette.types import Receive, Scope, Send

from frontend.server.api.errors import EXPECTED, ClientGone, from_engine
from frontend.server.api.jobs import fail_on_error
from frontend.server.generation import TextDelta, TextGeneration

_LOG = logging.getLogger(__name__)

_DONE = b"data: [DONE]\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the events
]

Chunk = Callable[[int, TextGeneration, TextDelta], bytes]  # (choice, its generation, what it adds) -> one event's JSON


Result = TypeVar("Result")


class EventStream:
    """The ASGI answer of a streaming request. Whatever ends it, no generation is left running."""

    def __init__(self, generations: Sequence[TextGeneration], chunk: Chunk, last: Callable[[], bytes]) -> None:
        """`last()` is the JSON of an event before [DONE], such as the usage; empty: none."""
        self._generations = generations
        self._chunk = chunk
        self._last = last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Streams until every generation has ended or the client leaves."""
        try:
            await unless_gone(receive, self._write(send))
        except ClientGone:
            pass
        finally:
            for generation in self._generations:
                generation.cancel()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        chunk = self._chunk
        end = _DONE
        try:
            async for index, generation, delta in interleave(self._generations):
                fail_on_error(delta)
                data = b"data: " + chunk(index, generation, delta) + b"\n\n"
                await send({"type": "http.response.body", "body": data, "more_body": True})
            if last := self._last():
                end = b"data: " + last + b"\n\n" + _DONE
        except EXPECTED as error:  # the status is sent: the stream itself has to tell
            end = b"data: " + from_engine(error).body() + b"\n\n" + _DONE
        except Exception as error:  # noqa: BLE001 - logged, and told to the client
            _LOG.exception("a stream failed")
            end = b"data: " + from_engine(error).body() + b"\n\n" + _DONE
        await send({"type": "http.response.body", "body": end})


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
