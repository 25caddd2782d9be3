"""Requests that wait for a slot: by priority, then by their clients' turns, then first come, first served."""

import heapq
from collections.abc import Iterator
from itertools import count

from scheduler_proc.request import Request


class WaitingQueue:
    """A heap by (priority, round, arrival). Removal is lazy: an entry whose request left is skipped when it comes to the top."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int, int], int, Request]] = []
        self._entries: dict[int, int] = {}  # request id -> number of its entry; entries with another number are left behind
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, request: Request) -> bool:
        return request.request_id in self._entries

    def __iter__(self) -> Iterator[Request]:
        """The requests, in no order. Looks at all entries: for rare events, and for people who ask."""
        return (request for _, number, request in self._heap if self._entries.get(request.request_id) == number)

    def push(self, request: Request) -> None:
        """A preempted request keeps its arrival number, and so comes before those that came later."""
        self._entries[request.request_id] = number = next(self._numbers)
        heapq.heappush(self._heap, (request.rank, number, request))

    def head(self) -> Request | None:
        """Who is next, or None."""
        while self._heap:
            _, number, request = self._heap[0]
            if self._entries.get(request.request_id) == number:
                return request
            heapq.heappop(self._heap)
        return None

    def num_ahead(self, request: Request) -> int:
        """How many come before this one."""
        return sum(1 for other in self if other.rank < request.rank)

    def pop(self) -> Request:
        """Takes the head. Raises IndexError when nobody waits."""
        request = self.head()
        if request is None:
            raise IndexError("no request waits")
        self.remove(request)
        return request

    def remove(self, request: Request) -> None:
        """Forgets a request, here or not."""
        self._entries.pop(request.request_id, None)
