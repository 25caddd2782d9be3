"""Requests that wait for a slot: first come, first served within each priority."""

import heapq

from scheduler_proc.request import Request


class WaitingQueue:
    """A heap by (priority, arrival). Removal is lazy: an entry whose request left is skipped when it comes to the top."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int], Request]] = []
        self._members: set[int] = set()

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, request: Request) -> bool:
        return request.request_id in self._members

    def push(self, request: Request) -> None:
        """A preempted request keeps its arrival number, and so comes before those that came later."""
        heapq.heappush(self._heap, (request.rank, request))
        self._members.add(request.request_id)

    def head(self) -> Request | None:
        """Who is next, or None."""
        while self._heap and (self._heap[0][1].request_id not in self._members or self._heap[0][1].finished):
            heapq.heappop(self._heap)
        return self._heap[0][1] if self._heap else None

    def num_ahead(self, request: Request) -> int:
        """How many members come before this one. Looks at all of them: for people who ask, not for decisions."""
        return sum(1 for rank, other in self._heap if rank < request.rank and other in self and not other.finished)

    def pop(self) -> Request:
        """Takes the head. Raises IndexError when nobody waits."""
        if self.head() is None:
            raise IndexError("no request waits")
        _, request = heapq.heappop(self._heap)
        self._members.discard(request.request_id)
        return request

    def remove(self, request: Request) -> None:
        """Forgets a request, here or not."""
        self._members.discard(request.request_id)
