"""Pages that watch an engine while it is measured, and a dashboard that scrapes it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from frontend.bench.http_client import HttpClient, HttpError

_SCRAPE_SECONDS = 1.0


@asynccontextmanager
async def watching(base_url: str, pages: int) -> AsyncIterator[None]:
    """While the block runs, so many clients read the events of GET / as its page does, and one asks for /metrics once a second.
    Without pages nobody does. All are there when the block begins.

    Raises HttpError where the engine does not let them, or ends their streams.
    """
    if not pages:
        yield
        return
    client, begun = HttpClient(base_url), asyncio.Semaphore(0)
    tasks = [asyncio.ensure_future(_watch(client, begun)) for _ in range(pages)]
    tasks.append(asyncio.ensure_future(_scrape(client)))
    try:
        ready = asyncio.ensure_future(_all(begun, pages))
        await asyncio.wait([ready, *tasks], return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        _check(tasks)
        yield
        _check(tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        client.close()


async def _watch(client: HttpClient, begun: asyncio.Semaphore) -> None:
    seen = 0

    def take(data: bytes) -> None:
        nonlocal seen
        if not seen:
            begun.release()
        seen += len(data)

    status = await client.request("GET", "/ui/events", b"", take)
    raise HttpError(f"{client.base_url}/ui/events ended with status {status} after {seen} bytes")


async def _scrape(client: HttpClient) -> None:
    while True:
        await client.fetch("GET", "/metrics")
        await asyncio.sleep(_SCRAPE_SECONDS)


async def _all(begun: asyncio.Semaphore, count: int) -> None:
    for _ in range(count):
        await begun.acquire()


def _check(tasks: "Sequence[asyncio.Future[None]]") -> None:
    for task in tasks:
        if task.done():
            task.result()
