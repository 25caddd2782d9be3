"""One answer for all who ask for it at the same time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class Shared(Generic[Answer]):
    """Something that takes time to find out. It is found out for one asker at a time, and for all who came before that began.

    So an answer is never older than the question, and however many ask, two are under way at the most.
    """

    def __init__(self, find_out: Callable[[], Awaitable[Answer]]) -> None:
        self._find_out = find_out
        self._running: asyncio.Task[Answer] | None = None
        self._next: asyncio.Task[Answer] | None = None  # has not begun

    async def get(self) -> Answer:
        """The answer. Raises what `find_out` raises. Who is cancelled does not take it from the others."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._run(self._running))
            self._next.add_done_callback(_forget)
        return await asyncio.shield(self._next)

    async def _run(self, before: "asyncio.Task[Answer] | None") -> Answer:
        if before is not None:
            await asyncio.wait([before])
        self._running, self._next = self._next, None
        return await self._find_out()


def _forget(task: "asyncio.Task[Answer]") -> None:
    if not task.cancelled():
        task.exception()  # whether anybody is left to hear it or not
