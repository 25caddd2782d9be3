"""What one end of a link still has to say while the other does not read."""

from collections import deque
from collections.abc import Callable


class Outbox:
    """Packets in order. Those that may be dropped are, when there is no room; the others wait."""

    def __init__(self, write: Callable[[bytes], bool], capacity: int) -> None:
        """`write` hands one packet over without waiting, and returns False when there is no room for it. `capacity`: packets."""
        self._write = write
        self._capacity = capacity
        self._waiting: deque[bytes] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, packet: bytes, *, may_drop: bool) -> bool:
        """Says `packet` after everything before it. Returns False when more waits than the capacity: the peer will not read."""
        if not self._waiting and self._write(packet):
            return True
        if not may_drop:
            self._waiting.append(packet)
        return len(self._waiting) <= self._capacity

    def flush(self) -> None:
        """Hands over as much as there is room for."""
        while self._waiting and self._write(self._waiting[0]):
            self._waiting.popleft()

    def clear(self) -> None:
        """Nobody will read it."""
        self._waiting.clear()
