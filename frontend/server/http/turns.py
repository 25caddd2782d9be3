"""Turns in the order of arrival, for work that is counted in bytes."""

import asyncio
from collections import deque


class Turns:
    """At most `limit` bytes are worked on at a time; what is larger than that has its turn alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size: int) -> None:
        """Returns when it is one's turn. Who is cancelled has none."""
        if not self._waiting and self._has_room(size):
            self._taken += size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(size)
            raise

    def give(self, size: int) -> None:
        """The end of a turn."""
        self._taken -= size
        while self._waiting and (self._waiting[0][1].done() or self._has_room(self._waiting[0][0])):
            wanted, turn = self._waiting.popleft()
            if not turn.done():
                self._taken += wanted
                turn.set_result(None)

    def _has_room(self, size: int) -> bool:
        return self._taken == 0 or self._taken + size <= self._limit
