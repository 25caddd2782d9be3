"""What a Python client has sent and what is not handled yet: bounded in bytes, handled a little at a time.

While something waits here, nothing more is read, so a client that sends more than the engine takes waits at its own socket.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from frontend.server.ipc.incoming import read_frame, too_large
from frontend.server.turns import Turns, rest_after
from frontend.wire import MAX_FRAME, ClientMessage, Refused
from protocol.clock import now
from protocol.errors import ProtocolError

_LENGTH_BYTES = 4
_SMALL = 64 << 10  # bytes of a frame that waits for no turn
_HEAD = 64  # bytes of a frame that is too large: enough to see whose request it is
_MOST_PER_TURN = 100  # messages, frames and KiB of these, handled before others get their turn: a millisecond or two
_SECONDS = 30.0  # for the rest of a large frame
IN_WORK = 64 << 20  # bytes of larger frames, of all connections, that are received and handled at a time


class Frames:
    """Cuts a byte stream into frames. Of one beyond `limit` the beginning is kept, and the rest thrown away as it comes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._skip = 0  # bytes of a frame that is too large, still to come

    @property
    def incomplete(self) -> int:
        """Length of the frame that is being received; 0 until that is known."""
        if len(self._buffer) < _LENGTH_BYTES:
            return 0
        return int.from_bytes(self._buffer[:_LENGTH_BYTES], "little")

    def feed(self, data: bytes) -> list[tuple[bytes, bool]]:
        """The frames that `data` completes, and whether each is here in full.

        Raises ProtocolError on one that is longer than any may be: the stream is then useless.
        """
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        self._buffer += data
        complete: list[tuple[bytes, bool]] = []
        start, end = 0, len(self._buffer)
        while end - start >= _LENGTH_BYTES:
            begin = start + _LENGTH_BYTES
            length = int.from_bytes(self._buffer[start:begin], "little")
            if length > MAX_FRAME:
                raise ProtocolError(f"a frame of {length} bytes: at most {MAX_FRAME} are allowed")
            if length > self._limit:
                if end - begin < _HEAD:
                    break
                complete.append((bytes(self._buffer[begin : begin + _HEAD]), False))
                here = min(length, end - begin)
                self._skip = length - here
                start = begin + here
                continue
            if begin + length > end:
                break
            complete.append((bytes(self._buffer[begin : begin + length]), True))
            start = begin + length
        if start:
            del self._buffer[:start]
        return complete


class Inbox:
    """Of one connection."""

    def __init__(
        self,
        limit: int,
        turns: Turns,
        handle: Callable[[ClientMessage | Refused], None],
        malformed: Callable[[ProtocolError], None],
        may_handle: Callable[[], bool],
        hold_back: Callable[[bool], None],
        late: Callable[[], None],
    ) -> None:
        """`limit`: bytes of a frame. `may_handle`: whether there is room for what follows from messages; when it becomes true,
        `go_on` is to be called. `hold_back`: stops and resumes reading. `late`: a large frame did not come in its time.
        """
        self._loop = asyncio.get_running_loop()
        self._frames = Frames(limit)
        self._limit = limit
        self._turns = turns
        self._handle = handle
        self._malformed = malformed
        self._may_handle = may_handle
        self._hold_back = hold_back
        self._late = late
        self._timer: asyncio.TimerHandle | None = None
        self._received: deque[tuple[bytes, bool]] = deque()
        self._messages: deque[ClientMessage | Refused] = deque()
        self._turn = 0  # bytes of the large frame that has its turn
        self._waiting: asyncio.Task[None] | None = None  # for a turn
        self._due = False
        self._closed = False

    def feed(self, data: bytes) -> None:
        """Bytes came. Raises ProtocolError when nothing that follows can be understood."""
        self._received += self._frames.feed(data)
        self.go_on()

    def go_on(self) -> None:
        """Handles some of what is here."""
        work, began = 0, now()
        while work < _MOST_PER_TURN and not self._closed and self._may_handle():
            work += 1
            if self._messages:
                self._handle(self._messages.popleft())
            elif self._received:
                frame, whole = self._received.popleft()
                work += len(frame) >> 10
                self._read(frame, whole)
            else:
                break
        left = bool(self._messages or self._received)
        if left and not self._due and not self._closed and self._may_handle():
            self._due = True
            self._loop.call_later(rest_after(now() - began), self._go_on)
        if not left:
            self._end_turn()
            self._wait_for_turn()
        self._hold_back(left or self._waiting is not None)

    def close(self) -> None:
        """Handles nothing more."""
        self._closed = True
        self._messages.clear()
        self._received.clear()
        if self._waiting is not None:
            self._waiting.cancel()
        self._end_turn()

    def _go_on(self) -> None:
        self._due = False
        if not self._closed:
            self.go_on()

    def _read(self, frame: bytes, whole: bool) -> None:
        try:
            self._messages += read_frame(frame) if whole else [too_large(frame, self._limit)]
        except ProtocolError as error:
            self._malformed(error)

    def _wait_for_turn(self) -> None:
        """Before the rest of a large frame is read."""
        size = self._frames.incomplete
        if _SMALL < size <= self._limit and not self._turn and self._waiting is None and not self._closed:
            self._waiting = self._loop.create_task(self._take_turn(size))

    async def _take_turn(self, size: int) -> None:
        await self._turns.take(size)
        self._turn, self._waiting = size, None
        self._timer = self._loop.call_later(_SECONDS, self._late)
        if self._closed:
            self._end_turn()
        else:
            self.go_on()

    def _end_turn(self) -> None:
        """Of a frame that is here in full, and handled."""
        if self._turn and (self._closed or self._frames.incomplete != self._turn):
            size, self._turn = self._turn, 0
            self._turns.give(size)
            if self._timer is not None:
                self._timer.cancel()
