"""Messages of the frontends that are here and not yet taken in: who sends many requests waits behind those who send few.

Taking a request in costs time (its prompt is unpacked, and named block by block when it is admitted), so at a turn of the loop some
are, and the frontends' pipe alone would have everybody wait for whatever one client sent before.
"""

from collections.abc import Iterable

from protocol.messages import AbortRequest, AddRequest, FrontendToScheduler


class Intake:
    """Requests by the lines of their clients (`AddRequest.line`), each line in the order of its arrival. The lines take turns;
    those who have one request each share a line. All else waits for nothing."""

    def __init__(self) -> None:
        self._lines: dict[int, dict[int, AddRequest]] = {}  # line -> request id -> message; the next line first
        self._line_of: dict[int, int] = {}  # request id -> line

    def __len__(self) -> int:
        return len(self._line_of)

    def put(self, messages: Iterable[FrontendToScheduler]) -> list[FrontendToScheduler]:
        """Takes requests, and returns what need not wait. A request that is aborted while it waits never was."""
        others: list[FrontendToScheduler] = []
        for message in messages:
            match message:
                case AddRequest(request_id=request_id, line=line):
                    self._remove(request_id)  # a number is used once, or again for the same request
                    self._line_of[request_id] = line
                    self._lines.setdefault(line, {})[request_id] = message
                case AbortRequest(request_id) if request_id in self._line_of:
                    self._remove(request_id)
                case _:
                    others.append(message)
        return others

    def take(self, most: int) -> list[AddRequest]:
        """Those whose turn it is, and at most so many."""
        taken: list[AddRequest] = []
        while self._lines and len(taken) < most:
            line, waiting = next(iter(self._lines.items()))
            del self._lines[line]
            request_id, message = next(iter(waiting.items()))
            del waiting[request_id], self._line_of[request_id]
            if waiting:
                self._lines[line] = waiting
            taken.append(message)
        return taken

    def _remove(self, request_id: int) -> None:
        line = self._line_of.pop(request_id, None)
        if line is not None:
            waiting = self._lines[line]
            del waiting[request_id]
            if not waiting:
                del self._lines[line]
