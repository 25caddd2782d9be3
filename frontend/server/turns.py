"""Turns in the order of arrival: for work that is counted in bytes, for work that nobody else can do anything beside, and for much
work in small pieces."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from protocol.clock import now

Value = TypeVar("Value")

_NOTICED = 0.005  # seconds; what is shorter needs no rest


def rest_after(seconds: float) -> float:
    """How long others have the event loop after it was held for that long: a request needs it many times before its answer."""
    return seconds if seconds > _NOTICED else 0.0


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


class Alone:
    """Work that keeps Python's lock, so that a thread would help nobody: one piece at a time, and a rest of its length before the
    next one begins."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._rests_until = 0.0

    async def run(self, function: Callable[[], Value]) -> Value:
        """The result of `function`, in its turn."""
        async with self._turn:
            await asyncio.sleep(max(0.0, self._rests_until - now()))  # whatever else is due goes before, also without a rest
            began = now()
            try:
                return function()
            finally:
                self._rests_until = now() + rest_after(now() - began)


class OneByOne:
    """At each turn of the event loop one of those who wait goes on, so that whatever else is due there waits for one piece of work
    at most, however many there are."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def turn(self) -> None:
        """Returns when it is one's turn. Who is cancelled has none."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._next)
        self._waiting.append(turn)
        await turn

    def _next(self) -> None:
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft()
        if self._waiting:
            self._waiting.popleft().set_result(None)
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._next)
